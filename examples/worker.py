"""A complete worker in plain Python: the protocol, and a small game behind it.

Try it:  uncouple train --set sft.steps=0 --set env.suite=worker --set 'env.command=["python3", "examples/worker.py"]'

To bring an environment of your own, give `serve` an object with `name`, `tasks()`, `reset(task)` and `step(action)`.
"""

import json
import random
import sys


def serve(world):
    """Answers requests, one JSON object a line, until `close` or the end of stdin. Only `serve` may write to stdout."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        method = request["method"]
        if method == "close":
            return
        try:
            if method == "hello":
                answer = {"protocol": 1, "name": world.name}
            elif method == "list_tasks":
                answer = {"tasks": world.tasks()}
            elif method == "reset":
                answer = world.reset(request["task"])
            elif method == "step":
                answer = world.step(request["action"])
            else:
                answer = {"error": f"unknown method {method}"}
        except Exception as error:  # the trainer hears the reason; the episode counts for nothing
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"id": request["id"], **answer}), file=out, flush=True)


class Corridor:
    """A lamp stands behind one of some doors. Training knows 3 to 5 doors, L1 has 6, L2 asks to leave the lamp off."""

    name = "corridor"

    def tasks(self):
        splits = [("train", "find", doors, seed) for doors in (3, 4, 5) for seed in range(20)]
        splits += [("L0", "find", doors, 100 + seed) for doors in (3, 4, 5) for seed in range(4)]
        splits += [("L1", "find", 6, seed) for seed in range(12)]
        splits += [("L2", "avoid", doors, seed) for doors in (3, 4, 5) for seed in range(4)]
        return [{"id": f"{kind}/{doors}/{seed}", "kind": kind, "split": split} for split, kind, doors, seed in splits]

    def reset(self, task):
        self.kind, doors, seed = task.split("/")
        self.doors = int(doors)
        self.lamp = random.Random(f"{doors} {seed}").randrange(1, self.doors + 1)
        self.place = 0
        want = "switch the lamp on" if self.kind == "find" else "open every door but the lamp's"
        return self.show(f"You are in a corridor with {self.doors} doors. Door {self.lamp} is warm. Your task: {want}.")

    def step(self, action):
        if action not in self.admissible():
            return self.show("Nothing happens.", valid=False)
        if action.startswith("open"):
            self.place = int(action.split()[-1])
            return self.show(f"Behind door {self.place} is {'a lamp' if self.place == self.lamp else 'a wall'}.")
        if action == "switch the lamp on":
            won = self.kind == "find"
            return self.show("The lamp is on.", won=won, done=True, reward=float(won))
        won = self.kind == "avoid" and self.place not in (0, self.lamp)
        return self.show("You go home.", won=won, done=True, reward=float(won))

    def admissible(self):
        commands = [f"open door {n}" for n in range(1, self.doors + 1)] + ["go home"]
        return sorted(commands + ["switch the lamp on"] * (self.place == self.lamp))

    def show(self, text, **more):
        return {"text": text, "admissible": self.admissible(), **more}


if __name__ == "__main__":
    serve(Corridor())
