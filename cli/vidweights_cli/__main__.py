"""`python -m vidweights_cli`."""

from vidweights_cli.main import main

main()
