"""A complete worker in plain Python: the protocol, and a small game behind it.

Try it:  uncouple train --set env.suite=worker --set 'env.worker.command=["python3", "examples/worker.py"]'

To bring an environment of your own, give `serve` an object with `name`, `tasks()`, `reset(task)` and `step(action)`.
With each observation it may tell `expert`, the command of one who knows the way, which the cold start teaches, and `distance`, the
fewest steps to the goal, by which the oracle labels actions for GCD. Leave them out where the game does not know them: without
`expert`, train with --set sft.steps=0.
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
        plan = [] if more.get("done") else self.plan()
        return {"text": text, "admissible": self.admissible(), "expert": plan[0] if plan else None, "distance": len(plan), **more}

    def plan(self):
        """A shortest way to the goal from here."""
        if self.kind == "find":
            return [f"open door {self.lamp}"] * (self.place != self.lamp) + ["switch the lamp on"]
        return [f"open door {1 if self.lamp != 1 else 2}"] * (self.place in (0, self.lamp)) + ["go home"]


if __name__ == "__main__":
    serve(Corridor())
