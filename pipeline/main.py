"""The job: `python -m pipeline.main --help`."""

import logging
import os
import sys
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from pipeline.errors import OperatorError
from pipeline.graph import build
from pipeline.local.processes import Interruption, Stopped
from pipeline.metrics_file import MetricsFile
from pipeline.options import OptionsError, RehabOptions, parse_options, runner_name
from pipeline.preflight import check
from pipeline.rebuild import rebuild
from pipeline.runners import runner_for
