"""One subcommand, one module; with edgekd.cli the only code that prints or exits."""
