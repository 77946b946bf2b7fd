"""`python -m mechanicd`: the command line, where its script is not on the PATH."""

from mechanicd.cli import main

main(prog_name="mechanicd")
