"""`rewarm`, `python -m rewarm`, and `torchrun -m rewarm`."""

from rewarm.cli.process_setup import exit_at_interrupts_of_imports


def start() -> None:
    """Runs the command line."""
    exit_at_interrupts_of_imports()
    from rewarm.cli.app import main

    main()


if __name__ == "__main__":
    start()
