"""`python -m rewarm`, and `torchrun -m rewarm`."""

from rewarm.cli import main

main()
