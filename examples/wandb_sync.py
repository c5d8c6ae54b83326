#!/usr/bin/env python3
"""Copies runs to Weights & Biases: python3 examples/wandb_sync.py runs/NAME… [--project NAME]

Needs `pip install wandb`. WANDB_MODE=offline writes to ./wandb, for `wandb sync` later. A run that is copied again replaces its copy."""

import argparse
import json
import pathlib
import tomllib

import wandb


def sync(run: pathlib.Path, project: str) -> None:
    config = tomllib.loads((run / "config.toml").read_text())
    with wandb.init(project=project, name=run.name, id=run.name, config=config, resume="allow") as target:
        # Each phase counts its own steps.
        for phase in ("sft", "grpo", "eval", "eval-no-suggestions"):
            target.define_metric(f"{phase}/step")
            target.define_metric(f"{phase}/*", step_metric=f"{phase}/step")
        for line in (run / "metrics.jsonl").read_text().splitlines():
            record = {name: value for name, value in json.loads(line).items() if value is not None}
            phase = record.pop("phase")
            target.log({f"{phase}/{name}": value for name, value in record.items()})
        if (run / "summary.json").exists():
            target.summary.update(json.loads((run / "summary.json").read_text()))
            target.save(str(run / "report.html"), base_path=str(run), policy="now")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    arguments.add_argument("--project", default="uncouple")
    options = arguments.parse_args()
    for folder in options.runs:
        sync(folder, options.project)
