"""Training by several processes: started on this machine, or found by TF_CONFIG on several."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from kerasae import untrusted, writing
from kerasae.runs.checkpoints import CHECKPOINT

COMMAND = (sys.executable, "-m", "kerasae.cli")  # in a process of its own

_SILENCE = 60  # seconds without a sign of life, until a worker counts as dead
_TAIL = 1500  # characters of a dead worker's log that are shown


class WorkerError(RuntimeError):
    """A worker died or is missing."""


def task():
    """`(index, addresses)` of this process among the workers that TF_CONFIG names, the first of which is the chief; None without it.

    Raises:
        ValueError: where TF_CONFIG is not what TensorFlow wants.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        config = untrusted.json(text.encode(), {"cluster": {"worker": [str]}, "task": {"type": str}}, "it")
        addresses, kind, index = config["cluster"]["worker"], config["task"]["type"], int(config["task"]["index"])
        if kind != "worker" or set(config["cluster"]) != {"worker"} or not 0 <= index < len(addresses):
            raise KeyError(f"task {kind} {index} of {sorted(config['cluster'])}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            'TF_CONFIG must be {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, with an index of '
            f"the list. Received: {text[:200]} ({error})"
        ) from error
    return index, addresses


def checkpoint(folder, index):
    """Where a worker keeps its state: each has a folder of its own, since files can't be shared."""
    own = Path(folder) / CHECKPOINT
    return own / f"worker-{index}" if index else own


def strategy(index, addresses, timeout):
    """The `tf.distribute` strategy of all workers. Ends the process where one of them doesn't come: TensorFlow would wait for ever."""

    def give_up():
        missing = [a for i, a in enumerate(addresses) if i != index and not _answers(a)]
        print(
            f"Error: worker {index} waited {timeout:g} seconds for the others of TF_CONFIG. "
            + (
                f"No answer from {', '.join(missing)}: is it started, and the port free and open?"
                if missing
                else "They answer, but do not join: is TF_CONFIG the same for all, but for the index?"
            ),
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # nothing less ends a process that waits in there

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        import tensorflow as tf

        from kerasae import keras_internals

        keras_internals.let_workers_be_silent(_SILENCE, len(addresses))
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        timer.cancel()


def last_common_epoch(strategy, epochs):
    """The last epoch whose state all workers have whole, 0 where none has any.

    Args:
        strategy: of all workers.
        epochs: of this worker's states, the last one first; two are kept.

    Raises:
        WorkerError: where they have none in common: they would wait for each other for ever.
    """
    import tensorflow as tf

    def gather():
        context = tf.distribute.get_replica_context()
        return context.all_gather(tf.constant([[*epochs, 0, 0][:2]]), axis=0)

    found = strategy.experimental_local_results(strategy.run(tf.function(gather)))[0].numpy().tolist()
    common = set.intersection(*map(set, found)) - {0}
    if not common and any(map(any, found)):
        raise WorkerError(
            f"The workers' states are of different epochs, {[max(own) for own in found]}. Copy the newest epoch-*.weights.h5 and "
            f"history.json from its {CHECKPOINT} folder to the others', or start all again with --overwrite."
        )
    return max(common, default=0)


def _answers(address):
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def watch_parent():
    """Ends this process when the one that started it is gone, which its standard input tells."""

    def wait():
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(folder, num_workers, command):
    """Runs the command in processes that find each other by TF_CONFIG on this machine, until all have ended.

    Args:
        folder: of the run; the state of the worker that got furthest is given to all.
        num_workers: how many.
        command: arguments of `kerasae`; the chief's output goes to standard error.

    Raises:
        WorkerError: where one of them dies; the others are stopped.
    """
    _level(folder, num_workers)
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    processes, logs = [], []
    try:
        for i in range(num_workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            logs.append(checkpoint(folder, i) / "log.txt")
            with open(logs[i], "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*COMMAND, *command],
                        stdin=subprocess.PIPE,  # stays open as long as this process lives
                        stdout=log if i else 2,
                        stderr=log if i else None,
                        env={**os.environ, "TF_CONFIG": json.dumps(config)},
                        start_new_session=True,  # Ctrl-C is for this process to answer
                    )
                )
        while any(codes := [process.poll() for process in processes]) or None in codes:
            if dead := [i for i, code in enumerate(codes) if code]:
                # The one that died first is the cause; those that noticed die after it.
                first = min(dead, key=lambda i: codes[i] > 0)
                tail = logs[first].read_text(errors="replace")[-_TAIL:].strip() if first else ""
                how = (
                    f"was killed by signal {-codes[first]}"
                    if codes[first] < 0
                    else f"ended with exit code {codes[first]}"
                )
                raise WorkerError(
                    f"Worker {first} {how}; the others were stopped."
                    + (f" It said last:\n{tail}\n" if tail else "")
                    + " Go on with the same command and --resume."
                )
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()  # TensorFlow ignores gentler signals while it waits
            process.wait()
            process.stdin.close()


def _level(folder, num_workers):
    """Gives every worker the last two states of the furthest: a kill can come between the moments at which they save the same epoch."""
    folders = [checkpoint(folder, i) for i in range(num_workers)]
    states = {}
    for path in sorted((Path(folder) / CHECKPOINT).rglob("epoch-*.weights.h5"), reverse=True):
        states.setdefault(int(path.name.split(".")[0].removeprefix("epoch-")), []).append(path)
    for own in folders:
        own.mkdir(parents=True, exist_ok=True)
    if not states:
        return
    kept = sorted(states)[-2:]
    for own in folders:
        if not (own / states[kept[-1]][0].name).exists():
            sources = [states[kept[-1]][0].with_name("history.json"), *(states[epoch][0] for epoch in kept)]
            for path in sources:
                if path.parent != own:
                    with writing.file(own / path.name) as beside:
                        shutil.copyfile(path, beside)
    for epoch in set(states) - set(kept):
        for path in states[epoch]:
            path.unlink()


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
