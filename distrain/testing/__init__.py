"""Distributed tests: a pytest plugin that runs a test on several gloo ranks, forked from a warm server.

    @pytest.mark.distributed(nproc=4)
    def test_sum(world):
        total = torch.tensor(float(world.rank))
        torch.distributed.all_reduce(total)
        assert total == 6

What runs where:

    pytest          collects, evaluates skip marks, runs the *shared* fixtures, waits for the ranks, reports one test
      └─ server     a pytest of its own with the same arguments; imports torch once, and each test's module once
           └─ rank 0 … nproc-1     forked from it for one test: every other fixture, the body, the teardown

- Fixtures run in every rank: autouse ones, `monkeypatch`, `capsys`, those of the user, of any scope. A module's or a
  session's fixture is made anew for each test, since each test has new processes.
- Shared fixtures run once, in pytest's process, with their scope, and every rank gets a pickled copy of the value:
  `tmp_path`, and those that the mark names, `@pytest.mark.distributed(nproc=2, shared=["server_url"])`.
- Parametrised values, marks and closures are those that the module makes when it is imported: ranks see no change that
  another test, or pytest's process, has made to a module since.
- A rank has torchrun's variables, one thread for each library, and `DISTRAIN_RUN_DIR` below `tmp_path`. It ends with
  `os._exit` after its teardown: no exit functions.
- The test's outcome is that of its ranks. One that fails or skips ends the others, half a second after the latest.
- A fault that the test asks for is no failure: the rank that it hits need not pass, the others must.

A mark without arguments, or with none like those of ours, is another's where the project has registered the name
itself: its test runs as any other. Where another plugin has a fixture `world`, `run_dir` or `faults`, tests get that
one.

Ranks are forked, so importing a test's module must not start a thread; the server says so when it does.
"""
