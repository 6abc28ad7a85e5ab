"""`python -m rewarm`, and `torchrun -m rewarm`."""

from rewarm.cli.app import main

main()
