"""What is shown while a run goes on."""

import io

import pytest
from rich.console import Console

from vmkeep.cli.watch import Bars, Watch, watcher
from vmkeep.operations.report import StepReport
from vmkeep.planning import Estimate, Outcome, Plan, State, Step, Verb

STEP = Step("backup db1/os", Verb.BACKUP, ("db1",), "os", estimate=Estimate(1.0, 1000))


class Run:
    """As much of a run as is shown."""

    id = "20260101T000000Z-00000000"
    plan = Plan.of("backup", "shop", [STEP])


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one gets no bars
    return io.StringIO()


def plain(screen):
    return Watch(Console(file=screen, width=200))


def bars(screen):
    return Bars(Console(file=screen, width=120, force_terminal=True, color_system=None))


def test_a_finished_step_is_one_line_without_a_terminal(screen):
    watch = plain(screen)
    watch.begun(Run(), frozenset())
    watch.started(STEP)
    watch.advanced(STEP.id, 500)
    watch.ended(STEP, Outcome.succeeded(), StepReport("read 1.00 KiB"))

    lines = screen.getvalue().splitlines()
    assert len(lines) == 2
    assert "run 20260101T000000Z-00000000, 1 steps" in lines[0]
    assert lines[1].startswith("   done  backup db1/os: read 1.00 KiB (")


def test_a_failure_says_why_and_a_skipped_step_because_of_what(screen):
    watch = plain(screen)
    watch.ended(STEP, Outcome.failed("the disk [root] is gone"), None)
    watch.ended(STEP, Outcome(State.SKIPPED, "needs another"), None)

    assert "FAILED  backup db1/os: the disk [root] is gone" in screen.getvalue()
    assert "skipped  backup db1/os: needs another" in screen.getvalue()


def test_a_long_step_says_now_and_then_how_far_it_is(screen, monkeypatch):
    watch = plain(screen)
    now = [0.0]
    monkeypatch.setattr(watch, "_clock", lambda: now[0])
    watch.started(STEP)
    for now[0] in (10.0, 29.0, 31.0, 40.0):
        watch.advanced(STEP.id, 31 * 1024)

    assert screen.getvalue().splitlines() == ["   ...   backup db1/os: 93.0 KiB, 3.00 KiB/s"]


def test_a_terminal_gets_bars_with_bytes(screen):
    watch = bars(screen)
    watch.begun(Run(), frozenset())
    watch.started(STEP)
    watch.advanced(STEP.id, 400)
    watch._progress.refresh()
    watch.close()

    assert "400 B of about 1000 B" in screen.getvalue()
    assert "0 of 1 steps" in screen.getvalue()


def test_a_step_that_is_longer_than_was_thought_only_counts(screen):
    watch = bars(screen)
    watch.begun(Run(), frozenset())
    watch.started(STEP)
    watch.advanced(STEP.id, 1500)
    watch._progress.refresh()
    watch.close()

    assert "1.46 KiB " in screen.getvalue()
    assert "1.46 KiB of" not in screen.getvalue()


def test_bars_are_taken_away_when_their_steps_end(screen):
    watch = bars(screen)
    watch.begun(Run(), frozenset())
    watch.started(STEP)
    watch.ended(STEP, Outcome.succeeded(), StepReport())

    assert [task.description for task in watch._progress.tasks] == ["backup"]
    watch.close()


def test_what_is_no_terminal_gets_lines(screen):
    with watcher(Console(file=screen)) as watch:
        assert not isinstance(watch, Bars)
