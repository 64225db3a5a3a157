"""What a process is doing, in words."""

from __future__ import annotations

from distrain.supervision.process_state import ProcessState


def test_words_for_states():
    def words(state: str, wchan: str = "", stop_signal: str = "") -> str:
        return ProcessState(pid=1, state=state, wchan=wchan, stop_signal=stop_signal).words

    assert words("T", "do_signal_stop", "SIGTSTP") == "process stopped by a signal, SIGTSTP"
    assert words("T") == "process stopped by a signal, such as SIGSTOP"
    assert words("D", "nfs_wait") == "process stuck in the kernel, in nfs_wait"
    assert words("R", "0") == "process busy on a core"
    assert words("?") == "process in state ?"
