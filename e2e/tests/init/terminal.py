#!/usr/bin/env python3
"""Runs a command on a terminal of its own and answers its questions.

`terminal.py STEPS COMMAND...`: STEPS is JSON, a list of [TEXT, ANSWER]: once TEXT was printed, ANSWER is
typed; where TEXT ends with "hidden", once the terminal shows nothing of what is typed. Prints what the
terminal showed, and exits as the command did.
"""

import json
import os
import pty
import select
import sys
import termios
import time

PATIENCE = 120


def main():
    steps, command = json.loads(sys.argv[1]), sys.argv[2:]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    shown, begin, until = "", 0, time.monotonic() + PATIENCE
    while True:
        if time.monotonic() > until:
            sys.exit(f"no end, and not all of {steps} was asked:\n{shown}")
        if steps:
            text, answer = steps[0]
            hidden = text.endswith("hidden")
            at = shown.find(text.removesuffix("hidden"), begin)
            silent = not termios.tcgetattr(terminal)[3] & termios.ECHO
            if at >= 0 and hidden == silent:
                begin = at + len(text.removesuffix("hidden"))
                steps.pop(0)
                os.write(terminal, f"{answer}\n".encode())
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece.decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(shown)
    if steps:
        sys.exit(f"never asked: {steps}")
    sys.exit(code)


main()
