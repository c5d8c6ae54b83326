"""ScienceWorld by the official package and by ours, in one run: steps per second of one simulator, equal text, memory; then many
episodes on several of our simulators, some of which are killed.

    python -m venv venv && venv/bin/pip install -r benches/peers/envs-requirements.txt
    venv/bin/python benches/peers/scienceworld_peer.py [--uncouple target/release/uncouple]"""

import argparse
import collections
import os
import pathlib
import random
import signal
import threading
import time

import scienceworld
from envs import Session, children, resident, runs, serving, timed

JAR = pathlib.Path(scienceworld.__file__).parent / "scienceworld.jar"
SUITE = ["env.suite=scienceworld", f"env.scienceworld.data={JAR}"]


def official(task, steps):
    """A walk among the valid actions; what was said, and the seconds of its steps."""
    os.environ["JAVA_TOOL_OPTIONS"] = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2"
    name, variation = task.split("/")
    env = scienceworld.ScienceWorldEnv("", envStepLimit=10**6)
    env.load(name, int(variation), "easy")
    _, info = env.reset()
    choose, actions, said, seconds = random.Random(0), [], [], 0.0
    for _ in range(steps):
        valid = sorted(a for a in set(info["valid"]) if not a.startswith("focus"))
        actions.append(choose.choice(valid))
        (text, _, done, info), took = timed(lambda: env.step(actions[-1]))
        seconds += took
        said.append(text)
        if done:
            break
    env.close()
    del os.environ["JAVA_TOOL_OPTIONS"]
    return actions, said, seconds


def ours(uncouple, task, actions, said, admissible):
    with serving(uncouple, *SUITE, "env.workers=1", f"prompt.admissible={str(admissible).lower()}") as (url, pid):
        session = Session(url)
        session.call("reset", task=task)
        seconds = 0.0
        for action, expected in zip(actions, said):
            seen, took = timed(lambda: session.call("step", command=action))
            seconds += took
            assert seen["observation"]["text"] == expected, (action, seen["observation"]["text"], expected)
        return seconds, max(resident(java) for java in children(pid, "java"))


def under_fire(uncouple, episodes, simulators, kills, steps):
    """Episodes on a pool whose Java machines are killed now and then: how each ended."""
    ended, lock, numbers = collections.Counter(), threading.Lock(), iter(range(episodes))
    with serving(uncouple, *SUITE, f"env.workers={simulators}", "env.start_timeout=120") as (url, pid):

        def play():
            session = Session(url)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    session.call("reset", split="train", index=number)
                    for _ in range(steps):
                        if session.call("step", command="look around")["done"]:
                            break
                    outcome = "finished"
                except RuntimeError as error:
                    outcome = f"reported: {error}"
                with lock:
                    ended[outcome] += 1

        threads = [threading.Thread(target=play) for _ in range(simulators)]
        began = time.perf_counter()
        [thread.start() for thread in threads]
        choose, killed = random.Random(1), 0
        while any(thread.is_alive() for thread in threads):
            done = sum(ended.values())
            if killed < kills and done >= (killed + 1) * episodes // (kills + 2):
                javas = children(pid, "java")
                if javas:
                    os.kill(choose.choice(javas), signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)
        seconds, javas = time.perf_counter() - began, children(pid, "java")
    deadline = time.monotonic() + 5
    while any(map(runs, javas)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [java for java in javas if runs(java)]
    return ended, killed, seconds, left


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("--uncouple", default="target/release/uncouple")
    arguments.add_argument("--task", default="boil/3")
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--episodes", type=int, default=500)
    arguments.add_argument("--simulators", type=int, default=4)
    arguments.add_argument("--kills", type=int, default=8)
    args = arguments.parse_args()
    actions, said, seconds = official(args.task, args.steps)
    theirs = len(actions) / seconds
    print(f"official env.step(): {theirs:.1f} steps/s", flush=True)
    for admissible in [True, False]:
        seconds, memory = ours(args.uncouple, args.task, actions, said, admissible)
        rate, what = len(actions) / seconds, "with the valid actions" if admissible else "without them"
        print(f"ours {what}: {rate:.1f} steps/s, {rate / theirs:.1f} x, {memory / 1e6:.0f} MB a JVM; text equal", flush=True)
    ended, killed, seconds, left = under_fire(args.uncouple, args.episodes, args.simulators, args.kills, 5)
    print(f"{sum(ended.values())} episodes on {args.simulators} JVMs in {seconds:.0f} s, {killed} of them killed: {dict(ended)}; "
          f"processes left: {len(left)}")


main()
