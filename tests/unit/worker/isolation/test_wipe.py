from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from engine.worker.isolation.binding import BIND_NOW
from engine.worker.isolation.wipe import sweep_stack
from engine.worker.key_process import ENVIRONMENT
from tests.needs import LOCAL_EXTRA

if TYPE_CHECKING:
    from tests.unit.worker.isolation.conftest import Script

# A process that counts copies of a secret in its own memory; the scanner's store has none.
COUNTING = r"""
import ctypes, gc, json, os, random, sys
from engine.sealing.memory import wipe
from engine.worker.isolation import patterns, procfs
from engine.worker.isolation._libc import libc
from engine.worker.isolation.scan import PatternStore, Scan, Target
from engine.worker.isolation.wipe import (
    free_math_buffers, perturb_frees, sweep_heap, sweep_python, sweep_stack, trim, _malloc, _free, _usable,
)

me = Target("me", *procfs.self_memory())

def random_bytes(size):
    # Drawn in place: os.urandom would leave a copy in the interpreter's own memory, which no sweep of the heap reaches.
    drawn = bytearray(size)
    libc.getrandom(ctypes.byref(ctypes.c_char.from_buffer(drawn)), ctypes.c_size_t(size), 0)
    return drawn

class Secret:
    def __init__(self, data, *more):
        self.data = data
        self.store = PatternStore()
        laid = bytearray(8192)
        items = zip(("secret", "second", "third", "fourth"), map(memoryview, (data, *more)))
        patterns.write(memoryview(laid), items)
        self.store.add(memoryview(laid))
        wipe(laid)

    def report(self):
        # In a separate process, as with the scanner: its window holds copies of what it reads, which must not be here.
        read, write = os.pipe()
        try:
            child = os.fork()
        except OSError:  # hardened
            os.close(read)
            os.close(write)
            return Scan(self.store).run([me])["me"]
        if child == 0:
            os.write(write, json.dumps(Scan(self.store).run([me])["me"]).encode())
            os._exit(0)
        os.close(write)
        report = json.loads(os.read(read, 65536))
        os.close(read)
        os.waitpid(child, 0)
        return report

    def counts(self):
        return self.report()["hits"]

    def count(self):
        return self.counts()["secret"]

    def on_stack(self):
        return self.report()["where"].get("stack", 0)
"""

DIRTY_HEAP = (
    COUNTING
    + r"""
chooser = random.Random(int(sys.argv[1]))
outcomes = []
for round_number in range(20):
    secret = Secret(random_bytes(32))
    source = ctypes.addressof(ctypes.c_char.from_buffer(secret.data))
    chunks = []
    for _ in range(1500):
        size = int(2 ** chooser.uniform(5.5, 15))
        chunk = _malloc(size)
        ctypes.memmove(chunk + (size - 32 if size > 64 else 16), source, 32)
        chunks.append(chunk)
    chooser.shuffle(chunks)
    for chunk in chunks[200:]:
        _free(chunk)
    for chunk in chunks[:200]:
        ctypes.memset(chunk, 0, _usable(chunk))
    wipe(secret.data)
    before = secret.count()
    sweep_heap()
    sweep_stack()
    outcomes.append([before, secret.count()])
    for chunk in chunks[:200]:
        _free(chunk)
    secret.store.wipe()
print(json.dumps(outcomes))
"""
)


def test_a_sweep_leaves_nothing_in_20_of_20_dirty_heaps(script: Script) -> None:
    outcomes = json.loads(script(DIRTY_HEAP, "7").communicate(timeout=300)[0])
    assert len(outcomes) == 20
    assert min(before for before, _ in outcomes) > 500
    assert [after for _, after in outcomes] == [0] * 20


# A copy leaves a secret in vector registers; a call that takes one by value leaves it on the stack where it returned.
# The secret has 16 bytes: the narrowest vector register of any processor holds it whole.
SPILLED = (
    COUNTING
    + r"""
class Repeated(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 4096)]

by_value = libc.labs
by_value.argtypes, by_value.restype = (Repeated,), None
secret = Secret(random_bytes(16))
source, sink = Repeated.from_buffer(bytearray(secret.data * 256)), Repeated()

def leave(where):
    if where == "stack":
        by_value(source)
    else:
        ctypes.memmove(ctypes.addressof(sink), ctypes.addressof(source), 1024)

def below(depth, *arguments):
    return leave(*arguments) if depth == 0 else next(map(lambda _: below(depth - 1, *arguments), [None]))

below(int(sys.argv[2]), sys.argv[1])
if sys.argv[3] == "swept":
    sweep_stack()
print(secret.on_stack())
"""
)


def spilled(script: Script, where: str, depth: int, then: str, env: dict[str, str]) -> int:
    """Copies on the stack of a process that left a secret `depth` calls below, and then swept or did not."""
    return int(script(SPILLED, where, str(depth), then, env=env).communicate(timeout=120)[0])


@pytest.mark.parametrize("depth", [0, 1, 20, 200])
def test_a_sweep_leaves_nothing_on_the_stack(script: Script, depth: int) -> None:
    assert spilled(script, "stack", depth, "unswept", BIND_NOW) > 10
    assert spilled(script, "stack", depth, "swept", BIND_NOW) == 0


def test_what_a_copy_leaves_in_registers_does_not_reach_the_stack(script: Script) -> None:
    lazy = dict.fromkeys(BIND_NOW, "")
    if not spilled(script, "registers", 0, "unswept", lazy):
        pytest.skip("this interpreter is bound at its start anyway")
    assert spilled(script, "registers", 0, "unswept", BIND_NOW) == 0
    assert spilled(script, "registers", 0, "swept", lazy) == 0


def test_only_the_main_threads_stack_is_swept() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError):
        pool.submit(sweep_stack).result()


DIRTY_INTERPRETER = (
    COUNTING
    + r"""
secret = Secret(random_bytes(32))
view = memoryview(secret.data)
taken = [bytes(size) for size in range(0, 480, 8) for _ in range(int(sys.argv[1]))]
kept = [[bytes(view) + bytes(size) for size in range(0, 440, 8)] for _ in range(40)]
del kept
wipe(secret.data)
before = secret.count()
sweep_python()
print(json.dumps([before, secret.count()]))
"""
)


@pytest.mark.parametrize("taken", [0, 500, 1000, 1500])
def test_freed_objects_of_the_interpreter_are_overwritten(script: Script, taken: int) -> None:
    """With many blocks taken, no pool is half used, and the sweep has only free pools to allocate from."""
    before, after = json.loads(script(DIRTY_INTERPRETER, str(taken)).communicate(timeout=120)[0])
    assert before > 10
    assert after == 0


FREED = (
    COUNTING
    + r"""
works = perturb_frees() if sys.argv[1] == "perturbed" else True
secret = Secret(random_bytes(32))
source = ctypes.addressof(ctypes.c_char.from_buffer(secret.data))
chunks = [_malloc(size) for size in range(600, 1000, 16)]
for chunk in chunks:
    ctypes.memmove(chunk + 200, source, 32)
for chunk in chunks:
    _free(chunk)
wipe(secret.data)
print(json.dumps([works, secret.count()]))
"""
)


def test_buffers_are_overwritten_as_they_are_freed(script: Script) -> None:
    _, control = json.loads(script(FREED, "plain").communicate(timeout=120)[0])
    works, left = json.loads(script(FREED, "perturbed", env=dict(ENVIRONMENT)).communicate(timeout=120)[0])
    if not works:
        pytest.skip("this C library cannot overwrite what is freed: run on a system with glibc")
    assert control > 5
    assert left == 0


def test_without_torch_there_are_no_math_buffers(script: Script) -> None:
    output = script(COUNTING + "\nprint(free_math_buffers(), 'torch' in sys.modules)").communicate(timeout=120)[0]
    assert output.split() == ["absent", "False"]


TRAINED = (
    COUNTING
    + r"""
os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
import torch
from engine.worker.isolation import hardening

def train():
    model = torch.nn.Sequential(
        torch.nn.Embedding(500, 64), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 500)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    row = torch.randint(100, 500, (64,))
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(row)[:-1].clone(), row[1:].clone())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, optimizer, row

def window(tensor):
    return bytearray(tensor.detach().flatten()[16:32].numpy().tobytes())

train()
hardening.harden(hardening.Options(network_namespace=False))
outcomes, freed = [], set()
for turn in range(20):
    model, optimizer, row = train()
    weight = model[1].weight
    state = optimizer.state[weight]
    windows = [window(each) for each in (row, weight, state["exp_avg"], state["exp_avg_sq"])]
    secret = Secret(*windows)
    for each in windows:
        wipe(each)
    before = secret.counts() if turn in (0, 19) else None
    with torch.no_grad():
        for parameter in model.parameters():
            for tensor in (parameter.grad, *optimizer.state[parameter].values()):
                tensor.zero_()
            parameter.zero_()
        row.zero_()
    del model, optimizer, row, weight, state, parameter, tensor
    gc.collect()
    freed.add(free_math_buffers())
    sweep_heap()
    sweep_stack()
    trim()
    outcomes.append([before, secret.counts()])
    secret.store.wipe()
print(json.dumps({"outcomes": outcomes, "freed": sorted(freed), "mkl": torch.backends.mkl.is_available()}))
"""
)


@pytest.mark.training
def test_a_hardened_torch_process_is_clean_in_20_of_20_wipes(script: Script) -> None:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    found = json.loads(script(TRAINED).communicate(timeout=300)[0])
    assert len(found["outcomes"]) == 20
    (first, _), (last, _) = found["outcomes"][0], found["outcomes"][-1]
    assert min(*first.values(), *last.values()) >= 1
    assert [after for _, after in found["outcomes"]] == [dict.fromkeys(first, 0)] * 20
    assert found["freed"] == (["freed"] if found["mkl"] else ["absent"])
