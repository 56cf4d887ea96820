"""`python -m pipeline.flow [TARGET...]`: what `basin flow` does, without the table at the end."""

import sys

from pipeline.flow.commands import main

sys.exit(main(sys.argv[1:]))
