#!/usr/bin/env python3
"""Summarizes ctest's --output-junit file for scripts/test.sh.

    junit_summary.py FILE

Line 1: passed failed skipped. Line 2: the names of failed tests. Then a line for each reason to skip, with the tests. A test that
could not run at all (no program, a broken fixture) is a failure; skipped is only what says so itself.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

OWN_WORDS = ("SKIP_REGULAR_EXPRESSION_MATCHED", "SKIP_RETURN_CODE")


def main():
    passed, failed, skipped = 0, [], {}
    for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        name, note = case.get("name"), case.find("skipped")
        if case.get("status") == "run":
            passed += 1
        elif note is not None and note.get("message", "").startswith(OWN_WORDS):
            output = case.findtext("system-out", "")
            reason = re.search(r": Skipped\n(.+)", output) or re.search(r"SKIPPED \] *(.*)", output)
            skipped.setdefault(reason[1].strip() if reason else "no reason given", []).append(name)
        else:
            failed.append(name)
    print(passed, len(failed), sum(map(len, skipped.values())))
    print(", ".join(failed[:10]) + (", …" if len(failed) > 10 else ""))
    for reason, names in skipped.items():
        print(f"{reason}: {', '.join(names)}")


if __name__ == "__main__":
    main()
