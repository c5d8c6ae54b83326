"""Guess my number by hints: a small game of your own, complete with a demonstrator, and how to train on it.

    uncouple train --config examples/guess.toml

`serve` (examples/worker.py) speaks the protocol. The game lists its tasks with their splits, L0 for the same task types as training,
L1 for unseen instances of them, L2 for an unseen type, and tells two things more with each observation: `expert`, what a player says who halves
what is left, and `distance`, how many guesses such a player needs at most. A guess that does not shorten that is a bad one.
"""

from worker import serve

COMMANDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Guess:
    name = "guess"

    def tasks(self):
        """Training knows two ranges and L0 asks in them again; L1 asks in another range; in L2 the hints are turned around."""
        known = [("guess", 1, 7), ("guess", 2, 8)]
        ranges = [(split, *task) for split in ("train", "L0") for task in known]
        ranges += [("L1", "guess", 3, 9), ("L2", "opposite", 1, 7)]
        return [
            {"id": f"{split}/{kind}/{low}/{high}/{number}", "kind": kind, "split": split}
            for split, kind, low, high in ranges
            for number in range(low, high + 1)
        ]

    def reset(self, task):
        _, self.kind, low, high, number = task.split("/")
        self.low, self.high, self.number = int(low), int(high), int(number)
        hints = "" if self.kind == "guess" else " My hints say the opposite."
        return self.show(f"Guess my number, {COMMANDS[self.low - 1]} to {COMMANDS[self.high - 1]}.{hints}")

    def step(self, action):
        if action not in COMMANDS:
            return self.show("Say a number.", valid=False)
        guess = COMMANDS.index(action) + 1
        if guess == self.number:
            return {"text": "Right!", "won": True, "done": True, "distance": 0}
        if guess < self.number:
            self.low = max(self.low, guess + 1)
        else:
            self.high = min(self.high, guess - 1)
        says_higher = (guess < self.number) != (self.kind == "opposite")
        return self.show(f"{action} is wrong: {'higher' if says_higher else 'lower'}.")

    def show(self, text, **more):
        left = self.high - self.low + 1
        middle = COMMANDS[(self.low + self.high) // 2 - 1]
        return {"text": text, "admissible": sorted(COMMANDS), "expert": middle, "distance": left.bit_length(), **more}


if __name__ == "__main__":
    serve(Guess())
