"""What `predict` and `embed` share: their settings, and what they report at the end."""

from __future__ import annotations

import argparse
import logging

from mmhf.errors import InputError, NothingMadeError
from mmhf.inference import JobSettings, JobSummary

logger = logging.getLogger(__name__)

_SHOWN_REASONS = 10


def job_settings(options: argparse.Namespace) -> JobSettings:
    """The settings that the options stand for."""
    return JobSettings(
        columns=_parse_columns(options.column),
        image_root=options.image_root,
        limit=options.limit,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        overwrite=options.overwrite,
    )


def tell(summary: JobSummary, made: str) -> None:
    """Log the outcome of a job.

    Args:
        summary ([`JobSummary`]): The outcome.
        made (`str`): The same in words: `12 images`.

    Raises:
        NothingMadeError: No row could be predicted or embedded.
    """
    logger.info(
        "%s: %d rows (%s), %d of them here in %.1f s",
        summary.output_path,
        summary.rows,
        made,
        summary.rows_here,
        summary.seconds,
    )
    reasons = sorted(summary.errors.items(), key=lambda each: -each[1])
    for reason, count in reasons[:_SHOWN_REASONS]:
        logger.info("  %d rows: %s", count, reason)
    if len(reasons) > _SHOWN_REASONS:
        rest = sum(count for _, count in reasons[_SHOWN_REASONS:])
        logger.info("  %d rows: %d other reasons; see the column error", rest, len(reasons) - _SHOWN_REASONS)
    if summary.unpredicted == summary.rows:
        why = f"; the usual reason: {reasons[0][0]}" if reasons else ""
        raise NothingMadeError(f"{summary.output_path}: nothing could be made of any of {summary.rows} rows{why}")


def _parse_columns(pairs: list[str]) -> dict[str, str]:
    """`image=COLUMN` and `text=COLUMN`, as `--column` gives them."""
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or name not in ("image", "text"):
            raise InputError(f"--column {pair}: write image=COLUMN or text=COLUMN")
        columns[name] = column
    return columns
