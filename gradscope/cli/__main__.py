"""`python -m gradscope.cli`, if the command itself is not on the path."""

import sys

from gradscope.cli import main

sys.exit(main())
