"""The probe for standard input: reads it in three ways."""

import sys

import facts


def reading():
    found = {"input": input(), "line": sys.stdin.readline(), "rest": sys.stdin.read()}
    try:
        input()
    except EOFError as error:
        found["at the end"] = repr(error)
    return found


if __name__ == "__main__":
    facts.write(sys.argv[1], {"reading": reading(), **facts.collect(globals(), ["streams"])})
