"""Stands in for curl where it is not installed: as much of it as the printed commands need."""

import argparse
import sys

import httpx


def main() -> int:
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-H", action="append", default=[], dest="headers")
    parser.add_argument("-d", dest="data")
    parser.add_argument("url")
    stated = parser.parse_args()
    headers = [tuple(header.split(": ", 1)) for header in stated.headers]
    method = "GET" if stated.data is None else "POST"
    answer = httpx.request(method, stated.url, headers=headers, content=stated.data, timeout=60)
    sys.stdout.write(answer.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
