"""The state machine of a job, driven through random interleavings of everything that can happen."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.execution import Effects, Execution, StageRun, State
from orchestrator.graph import GENERATION, Graph, Stage

JOIN = Graph(
    (
        Stage("text", "encoder"),
        Stage("image", "encoder"),
        Stage("denoise", "denoiser", ("text", "image")),
        Stage("video", "decoder", ("denoise",)),
        Stage("audio", "decoder", ("denoise",)),
        Stage("mux", "decoder", ("video", "audio")),
    )
)


class AnyInterleaving(RuleBasedStateMachine):
    """Instances die, reads and tasks fail; every output is released where it lies, or died there."""

    @initialize(graph=st.sampled_from([GENERATION, JOIN]))
    def begin(self, graph: Graph) -> None:
        self.execution: Execution[int, str] = Execution("job", graph, "e")
        self.next_instance = 3
        self.lives = 1
        self.live = {0, 1, 2}
        self.held: dict[str, int] = {}  # task id -> instance, as the instances themselves know it
        self.apply(self.execution.start())

    def apply(self, effects: Effects[int, str]) -> None:
        for instance, task_id in effects.release:
            if instance in self.live:
                assert self.held.pop(task_id, None) == instance, f"{task_id} was not held by {instance}"
        assert all(run.state is State.READY for run in effects.ready)

    def runs(self, state: State) -> list[StageRun[int, str]]:
        return [run for run in self.execution.runs.values() if run.state is state]

    @precondition(lambda self: self.runs(State.READY))
    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs(State.READY)))
        inputs = self.execution.inputs(run)
        assert len(inputs) == len(run.stage.inputs), "dispatched without its inputs"
        assert set(inputs) <= set(self.held), "an input that nobody holds"
        self.execution.dispatch(run, data.draw(st.sampled_from(sorted(self.live))))

    @precondition(lambda self: self.runs(State.RUNNING))
    @rule(data=st.data())
    def read_inputs(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs(State.RUNNING)))
        self.apply(self.execution.inputs_read(run.task_id))

    @precondition(lambda self: self.runs(State.RUNNING))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs(State.RUNNING)))
        assert run.instance is not None
        self.apply(self.execution.inputs_read(run.task_id))
        self.held[run.task_id] = run.instance
        self.apply(self.execution.done(run.instance, run.task_id, run.task_id))

    @precondition(lambda self: self.runs(State.RUNNING))
    @rule(data=st.data(), lost=st.booleans())
    def fail(self, data: st.DataObject, lost: bool) -> None:
        run = data.draw(st.sampled_from(self.runs(State.RUNNING)))
        unread = [] if run.has_inputs else [self.execution.runs[name].task_id for name in run.stage.inputs]
        self.apply(self.execution.failed(run.task_id, unread if lost else []))

    @precondition(lambda self: self.runs(State.RUNNING))
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs(State.RUNNING)))
        tries = run.tries
        self.apply(self.execution.handed_back(run.task_id))
        assert run.tries == tries

    @rule(data=st.data())
    def restart_the_orchestrator(self, data: st.DataObject) -> None:
        """Instances offer what they run and hold, in any order; some of it is of no use any more."""
        running = {run.task_id: run for run in self.runs(State.RUNNING)}
        orphans = data.draw(st.permutations(sorted(running.keys() | self.held.keys())))
        self.lives += 1
        self.execution = Execution("job", self.execution.graph, f"e{self.lives}")
        self.apply(self.execution.start())
        for task_id in orphans:
            run = running.get(task_id)
            instance = self.held[task_id] if run is None else run.instance
            assert instance is not None
            effects = self.execution.adopt(instance, task_id)
            if effects is None:
                self.held.pop(task_id, None)
                continue
            self.apply(effects)
            if run is not None and run.has_inputs:
                self.apply(self.execution.inputs_read(task_id))
            if run is None:
                self.apply(self.execution.done(instance, task_id, task_id))

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        instance = data.draw(st.sampled_from(sorted(self.live)))
        self.live.remove(instance)
        self.live.add(self.next_instance)
        self.next_instance += 1
        last = self.execution.graph.stages[-1].name
        self.held = {t: i for t, i in self.held.items() if i != instance or f"/{last}/" in t}
        self.apply(self.execution.instance_lost(instance))

    @rule(task=st.sampled_from(["job/denoise/e-99", "job/denoise", "nonsense", "job/none/e-1"]))
    def stray_event(self, task: str) -> None:
        assert self.execution.inputs_read(task) == Effects()
        assert self.execution.failed(task, []) == Effects()
        assert self.execution.done(0, task, "x") == Effects(release=[(0, task)])

    @invariant()
    def something_can_always_happen(self) -> None:
        if self.execution.result is None:
            assert self.runs(State.READY) or self.runs(State.RUNNING), "stuck"

    @invariant()
    def only_unread_outputs_are_held(self) -> None:
        known = {run.task_id for run in self.execution.runs.values() if run.output is not None}
        assert set(self.held) == known

    def teardown(self) -> None:
        if not hasattr(self, "execution"):
            return
        last = self.execution.graph.stages[-1].name
        self.apply(self.execution.cancel())
        assert [t for t in self.held if f"/{last}/" not in t] == [], "an output was never released"


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_a_request_passes_its_stages_in_order_and_every_output_is_released() -> None:
    execution: Execution[str, str] = Execution("job", GENERATION)
    (encode,) = execution.start().ready
    first = execution.dispatch(encode, "E")
    (denoise,) = execution.done("E", first, "embeddings").ready
    assert execution.inputs(denoise) == ["embeddings"]
    second = execution.dispatch(denoise, "D")
    assert execution.inputs_read(second).release == [("E", first)]
    (decode,) = execution.done("D", second, "latents").ready
    third = execution.dispatch(decode, "V")
    assert execution.inputs_read(third).release == [("D", second)]
    assert execution.done("V", third, "file") == Effects()
    assert execution.result == "file"


def test_an_output_that_was_released_is_made_again_when_its_consumer_dies() -> None:
    execution: Execution[str, str] = Execution("job", GENERATION)
    (encode,) = execution.start().ready
    first = execution.dispatch(encode, "E")
    (denoise,) = execution.done("E", first, "embeddings").ready
    execution.inputs_read(execution.dispatch(denoise, "D"))
    effects = execution.instance_lost("D")
    assert [run.stage.name for run in effects.ready] == ["encode"]
    assert denoise.state is State.WAITING


def test_after_a_restart_what_still_runs_is_adopted_and_not_repeated() -> None:
    before: Execution[str, str] = Execution("job", GENERATION, "e1")
    (encode,) = before.start().ready
    first = before.dispatch(encode, "E")
    (denoise,) = before.done("E", first, "embeddings").ready
    second = before.dispatch(denoise, "D")

    after: Execution[str, str] = Execution("job", GENERATION, "e2")
    after.start()
    effects = after.adopt("D", second)
    assert effects is not None and effects.ready == []
    assert after.runs["encode"].state is State.WAITING, "nobody needs it again"
    assert after.adopt("E", first) is not None
    after.done("E", first, "embeddings")
    assert after.inputs_read(second).release == [("E", first)]
    (decode,) = after.done("D", second, "latents").ready
    assert after.dispatch(decode, "V") == "job/decode/e2-1"


def test_an_orphan_that_was_made_again_already_is_refused() -> None:
    execution: Execution[str, str] = Execution("job", GENERATION, "e2")
    (encode,) = execution.start().ready
    execution.dispatch(encode, "E")
    assert execution.adopt("F", "job/encode/e1-1") is None
    assert execution.adopt("F", "job/nonsense/e1-1") is None


def test_attempts_go_on_counting_after_an_adoption() -> None:
    execution: Execution[str, str] = Execution("job", GENERATION, "e2")
    execution.start()
    execution.adopt("E", "job/encode/e1-3")
    (encode,) = execution.failed("job/encode/e1-3", []).ready
    assert execution.dispatch(encode, "E") == "job/encode/e2-4"
    assert encode.tries == 1


def test_an_instance_that_was_cut_off_for_a_moment_goes_on_and_is_not_blamed() -> None:
    execution: Execution[str, str] = Execution("job", GENERATION)
    (encode,) = execution.start().ready
    task = execution.dispatch(encode, "E")
    execution.instance_lost("E")
    assert (encode.tries, encode.losses) == (1, 1)
    assert execution.adopt("E again", task) is not None
    assert (encode.tries, encode.losses, encode.state) == (0, 0, State.RUNNING)
    execution.done("E again", task, "embeddings")
    execution.instance_lost("E again")
    assert execution.adopt("E once more", task) is not None, "an output that was held all along"
    assert (encode.tries, encode.losses) == (0, 0)
