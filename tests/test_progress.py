"""How far work is: a line every so often in a file, one that is drawn again in a terminal, and nothing of it in between."""

import os
import pty
import re
import subprocess
import sys

import pytest

from basin import progress
from basin.progress import Shown, Work

CODE = """
import logging, time
from basin import progress
logging.basicConfig(level=logging.INFO, format="%(message)s")
progress.EVERY = progress.REDRAWN = 0.2
for epoch in progress.each(range(3), "m, phase p", "epochs", done=1):
    for batch in progress.each(range(2), "epoch", "batches"):
        time.sleep(0.3)
print("ended")
"""
LINE = r"m, phase p: \d of 4 epochs, epoch: \d of 2 batches; 0:00:0\d(, about 0:00:0\d to go)?"


def test_where_the_output_is_a_file_lines_come_by_themselves():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert 3 <= len(lines) <= 12 and "\r" not in done.stderr and done.stdout == "ended\n"
    assert all(re.fullmatch(LINE, line) for line in lines), lines
    assert "to go" in lines[-1] and lines[-1].startswith("m, phase p: 3 of 4")


def test_in_a_terminal_one_line_is_drawn_again_and_taken_away():
    mine, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(mine, 4096):
            said += part
    except OSError:  # the other side is closed
        pass
    assert process.wait() == 0 and said.count(b"\n") == 0 and said.count(b"phase p") >= 3 and said.endswith(progress.CLEAR.encode())


def test_what_is_left_counts_the_parts_of_a_step_and_not_what_was_done_before():
    shown = Shown([Work("a", 4, "epochs", 2, 1), Work("b", 10, "batches", 5)])
    shown.since -= 60  # a minute for one epoch and a half
    assert shown.share(shown.stack) == 0.625
    assert shown.line() == "a: 2 of 4 epochs, b: 5 of 10 batches; 0:01:00, about 0:01:00 to go"


def test_work_ends_where_it_fails():
    with pytest.raises(ZeroDivisionError):
        for one in progress.each([1, 0], "a", "steps"):
            1 / one
    with progress.work("b", 2, "steps") as work:
        assert progress._here.shown.stack == [work]
