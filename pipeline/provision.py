"""Creates what the job needs: topics, subscriptions, a dataset, its tables and views.

    python -m pipeline.provision --primary_topic=projects/p/topics/t … --dataset=p.d

Run it as often as you like.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from pipeline.operations.provisioning import ProvisionError, Resources, provision


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ProvisionError(message.removeprefix("argument ").rstrip(".") + ".")


def _parse(arguments: Sequence[str] | None) -> tuple[Resources, str | None]:
    parser = _Parser(
        prog="python -m pipeline.provision",
        description="Creates or updates topics, subscriptions, the dataset, its tables and views.",
        allow_abbrev=False,
    )
    for name in Resources._fields:
        kind = name.rpartition("_")[2]
        form = "PROJECT.DATASET" if kind == "dataset" else f"projects/PROJECT/{kind}s/NAME"
        parser.add_argument(f"--{name}", required=True, help=form)
    parser.add_argument("--location", help="where BigQuery keeps a new dataset (default US)")
    options = vars(parser.parse_args(arguments))
    location = options.pop("location")
    return Resources(**options), location


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    try:
        provision(*_parse(arguments))
    except ProvisionError as error:
        print(error, file=sys.stderr)
        return 2
    except (GoogleAPIError, GoogleAuthError) as error:
        print(f"Google refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
