"""What a process tells the thread pool."""

import os

from flows.process import THREADS, tune_threads


def test_the_user_s_own_thread_settings_win(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    tune_threads()
    assert {name: os.environ[name] for name in THREADS} == {"GOMP_SPINCOUNT": "7"}
