"""Measure PSNR, SSIM and LPIPS of rendered views and write results and report: metrics.py -m DIR..."""

from arguments.steps import parse
from utils import errors
from utils.log import say


def main() -> None:
    """Parse, measure, say what was written."""
    common, params = parse("metrics")
    from evaluation.run_metrics import measure_models

    reports = measure_models(common, params)
    for folder in params.model_paths:
        say(f"wrote {folder}/results.json, per_view.json, metrics.json")
    for report in reports:
        say(f"open {report}")


if __name__ == "__main__":
    errors.run(main)
