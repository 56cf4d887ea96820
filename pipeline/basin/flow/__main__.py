"""`python -m basin.flow [TARGET...]`: what `basin flow` does, without the table at the end."""

import sys

from basin.flow.commands import main

sys.exit(main(sys.argv[1:]))
