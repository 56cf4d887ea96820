"""Prefect's part: when, where and how often to try. The only place that imports prefect.

    reproduction  the graph as a flow, a task a stage           order    which stage first
    sweep         a table of params as DVC's experiments        pages    what Prefect's pages show of a run, and of a stage at work
    judgement     one model, ours or not, judged                serving  the deployments, the worker, who looks after dead runs
    nightly       pull, reproduce, promote, say what changed    commands the command line
    cluster       stages on the nodes of a Ray cluster          node     what such a node does

The graph is DVC's (`repro.graph`), never a second copy; a task runs `dvc repro --single-item`, so that after a flow `dvc repro` has
nothing to do, and after `dvc repro` every task is skipped. Call `environment.apply()` before importing this package: prefect reads its
settings when it is imported.
"""

from pipeline.flow.commands import main
from pipeline.flow.judgement import evaluate
from pipeline.flow.nightly import nightly
from pipeline.flow.reproduction import StagesFailed, repro
from pipeline.flow.serving import serve
from pipeline.flow.sweep import sweep

__all__ = ["StagesFailed", "evaluate", "main", "nightly", "repro", "serve", "sweep"]
