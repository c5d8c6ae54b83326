"""TextWorld games made by `tw-make`, behind the worker protocol. Needs `pip install textworld`.

    tw-make tw-simple --rewards dense --goal detailed --seed 1 --output games/train/1.z8   (and games/L0/…, L1, L2)
    uncouple train --set env.suite=worker --set 'env.worker.command=["python3", "examples/textworld_worker.py", "games"]' --set sft.steps=0
"""

import sys
from pathlib import Path

from worker import serve


class TextWorld:
    name = "textworld"

    def __init__(self, folder):
        self.folder = Path(folder)
        self.env = None

    def tasks(self):
        found = []
        for split in ("train", "L0", "L1", "L2"):
            games = sorted(p for p in (self.folder / split).glob("*") if p.suffix in (".z8", ".ulx"))
            found += [{"id": f"{split}/{game.name}", "kind": "textworld", "split": split} for game in games]
        return found

    def reset(self, task):
        import textworld

        names = ("feedback", "admissible_commands", "won", "lost", "score", "objective", "description")
        wanted = textworld.EnvInfos(**dict.fromkeys(names, True))
        if self.env is not None:
            self.env.close()
        self.env = textworld.start(str(self.folder / task), wanted)
        self.score = 0
        state = self.env.reset()
        return self.show(f"{state.objective}\n{state.description}", state, False)

    def step(self, action):
        known = action in self.admissible
        state, _, done = self.env.step(action)
        # The status line after the prompt sign repeats what is known.
        return {**self.show(state.feedback.split("\n>")[0], state, done), "valid": known}

    def show(self, text, state, done):
        self.admissible = state.admissible_commands or []
        score = state.score or 0
        reward, self.score = score - self.score, score
        over = bool(done or state.won or state.lost)
        shown = {"text": text.strip(), "admissible": self.admissible, "reward": reward}
        return {**shown, "done": over, "won": bool(state.won)}


if __name__ == "__main__":
    serve(TextWorld(sys.argv[1]))
