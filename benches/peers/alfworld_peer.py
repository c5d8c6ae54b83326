"""ALFWorld games by the stock engine (textworld) and by ours, in one run: seconds to load and reset, steps per second, equal
text, and the memory of many live games.

    python -m venv venv && venv/bin/pip install -r benches/peers/envs-requirements.txt
    venv/bin/python benches/peers/alfworld_peer.py --games DIR [--uncouple target/release/uncouple]

DIR holds ALFWorld's games: train/TYPE-…/TRIAL/game.tw-pddl, as below $ALFWORLD_DATA/json_2.1.1."""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from envs import Session, resident, serving, timed

LONG = 3000


def walk(uncouple, game, steps):
    """A random walk among the admissible commands that never wins; what was said."""
    play = subprocess.Popen([uncouple, "env", "play", "--game", game], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    choose, said, commands = random.Random(0), [json.loads(play.stdout.readline())], []
    while len(commands) < steps and not said[-1]["done"]:
        moves = [c for c in said[-1]["admissible"] if not c.startswith(("move", "use"))]
        commands.append(choose.choice(moves))
        play.stdin.write(commands[-1] + "\n")
        play.stdin.flush()
        said.append(json.loads(play.stdout.readline()))
    play.stdin.close()
    play.wait()
    return commands, said


def ours(uncouple, game, commands):
    """Seconds of a process that plays the commands."""
    text = "".join(c + "\n" for c in commands)
    run = [uncouple, "env", "play", "--game", game]
    return timed(lambda: subprocess.run(run, input=text, text=True, stdout=subprocess.DEVNULL, check=True))[1]


def stock(game, commands, said):
    """Seconds to load, to reset, and for the steps; the text must be ours."""
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    env, load = timed(lambda: textworld.start(game, infos, wrappers=[AlfredDemangler(shuffle=False)]))
    state, reset = timed(env.reset)
    assert state.feedback == said[0]["feedback"], game
    seconds = 0.0
    for command, expected in zip(commands, said[1:]):
        (state, _, done), took = timed(lambda: env.step(command))
        seconds += took
        assert state.feedback == expected["feedback"], (game, command)
        assert sorted(set(state.admissible_commands)) == expected["admissible"], (game, command)
    env.close()
    return load, reset, seconds


def memory(uncouple, games, count):
    """Resident bytes of our server before and with `count` live games, each of a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            source = games[i % len(games)]
            trial = pathlib.Path(folder, "train", source.parent.parent.name, f"trial_{i:04}")
            trial.mkdir(parents=True)
            shutil.copy(source, trial)
        with serving(uncouple, "env.suite=alfworld", f"env.alfworld.data={folder}", "env.alfworld.train_types=all") as (url, pid):
            before, sessions = resident(pid), []
            for i in range(count):
                sessions.append(Session(url))
                sessions[-1].call("reset", split="train", index=i)
                sessions[-1].call("step", command="look")
            return before, resident(pid)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("--games", required=True, type=pathlib.Path)
    arguments.add_argument("--uncouple", default="target/release/uncouple")
    arguments.add_argument("--count", type=int, default=6, help="games to compare")
    arguments.add_argument("--steps", type=int, default=20, help="steps of the stock engine in each")
    arguments.add_argument("--live", type=int, default=1000, help="games alive at once for the memory")
    args = arguments.parse_args()
    games = sorted(args.games.glob("train/*/*/game.tw-pddl"))
    chosen = [str(game) for game in random.Random(0).sample(games, args.count)]
    rows = []
    for game in chosen:
        commands, said = walk(args.uncouple, game, LONG)
        begin = statistics.median(ours(args.uncouple, game, []) for _ in range(9))
        long = statistics.median(ours(args.uncouple, game, commands) for _ in range(3))
        load, reset, seconds = stock(game, commands[: args.steps], said)
        steps = min(args.steps, len(commands))
        rows.append((load + reset, begin, seconds / steps, (long - begin) / len(commands)))
        print(f"stock: load {load:.3f} s, reset {reset:.3f} s, step {1e3 * rows[-1][2]:.1f} ms | ours: process start, load "
              f"and reset {1e3 * begin:.1f} ms, step {1e6 * rows[-1][3]:.1f} us | {game}", flush=True)
    begin_stock, begin_ours, step_stock, step_ours = (statistics.mean(column) for column in zip(*rows))
    print(f"load and reset: {begin_stock / begin_ours:.0f} x (a process of ours for each game included)")
    print(f"steps/s: stock {1 / step_stock:.1f}, ours {1 / step_ours:.0f}, {step_stock / step_ours:.0f} x; text and commands equal")
    if args.live:
        before, after = memory(args.uncouple, games, args.live)
        print(f"{args.live} live games: {(after - before) / 1e6:.0f} MB, the whole server {after / 1e6:.0f} MB")


main()
