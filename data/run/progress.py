"""How far a run has come: what --resume needs, in out/<stage>/resume/ until the run is finished.

    began.json    the flags that the run began with
    state.pt      the training loop after some step: models, optimizer, random numbers, log
    <name>.pt     the result of a part that is finished, such as sampled answers

Each file is whole at any moment and stands for itself, so whatever moment a run is killed at, what
is there fits together. Nothing in them can run code: they are read with torch's weights_only.
"""

import json
import shutil

import torch

from data.run import signals
from data.run.checkpoint import BROKEN, make_folder, parse_json, write
from data.run.cli import MAY_CHANGE, UserError
from data.run.processes import any_of, rank


class Progress:
    """The progress of one run, kept in a folder of its own.

    resumed     whether this run goes on with what an earlier process has left
    """

    def __init__(self, folder, config, lineage):
        """config: the flags, a dict. UserError if --resume cannot be done with them."""
        self.folder, self.lineage, self.resumed = folder / "resume", lineage, config["resume"]
        if not rank():
            for half in [*folder.glob("*.tmp"), *self.folder.glob("*.tmp")]:  # left by a kill
                half.unlink(missing_ok=True)
            if self.resumed:
                self._check(config)
            else:
                self._begin(config)
        any_of(False)  # the first process has checked and begun
        signals.resumable = True

    def _check(self, config):
        try:
            began = dict(parse_json(self.folder / "began.json"))
        except BROKEN:
            folder = self.folder.parent
            why = ("that run is finished" if (folder / "results.json").exists()
                   else "no run was stopped there")
            raise UserError(f"nothing to resume in {folder}: {why}; leave out --resume to begin "
                            "a new one") from None
        now = json.loads(json.dumps(config))
        other = [f"--{name} {value} (it began with {began.get(name)})"
                 for name, value in now.items()
                 if name not in MAY_CHANGE and value != began.get(name)]
        if other:
            raise UserError(f"--resume needs the flags that the run began with, and these differ: "
                            f"{', '.join(other)}")

    def _begin(self, config):
        """What an unfinished run has left is kept as resume.prev, until a run is finished."""
        if (self.folder / "began.json").exists() and any(self.folder.glob("*.pt")):
            previous = self.folder.with_name("resume.prev")
            shutil.rmtree(previous, ignore_errors=True)
            self.folder.rename(previous)
            print(f"{self.folder.parent} holds an unfinished run, and a new one begins; to go on "
                  f"with the old one, stop this one, and rename {previous.name} to resume")
        shutil.rmtree(self.folder, ignore_errors=True)  # of a finished run that was killed here
        make_folder(self.folder)
        write(self.folder / "began.json", json.dumps(config, indent=1))

    def once(self, name, work):
        """work(), or its result of before, if an earlier process of this run has finished it.

        The result: lists, dicts, tuples, str and numbers. Random numbers go on as after the work.
        """
        if found := self.load(name):
            return found["result"]
        result = work()
        self.save(name, result=result)
        return result

    def save(self, name, **fields):
        """Keep these fields, the random generators, and what the run stands on."""
        content = dict(fields, random=random_state(), ancestors=self.lineage.ancestors)
        write(self.folder / f"{name}.pt", lambda file: torch.save(content, file))

    def load(self, name):
        """What `save` kept under a name, in this run or in that which it resumes; None if nothing.

        The random generators are put back. UserError if the run stands on something else now.
        """
        path = self.folder / f"{name}.pt"
        if not self.resumed or not path.exists():
            return None
        try:
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            before, generators = found.pop("ancestors"), found.pop("random")
        except BROKEN as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}): remove it, and "
                            "--resume does that part again") from None
        for thing, now in self.lineage.ancestors.items():
            if before.get(thing, now) != now:
                raise UserError(f"{thing} is not what it was when this run began: leave out "
                                "--resume to begin a new one")
        set_random_state(generators)
        return found

    def finish(self):
        """Delete the progress. began.json goes first: then there is nothing to resume."""
        any_of(False)  # all processes have read what they need
        signals.resumable = False
        if not rank():
            (self.folder / "began.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.folder.with_name("resume.prev"), ignore_errors=True)


def random_state():
    """The states of torch's random generators -> {device: tensor}.

    All processes draw the same numbers, so those of the first process stand for all.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
