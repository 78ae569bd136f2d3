"""Tasks for pretrained models, whose prompt is one text of instructions in free language."""

import dataclasses
import re

from fastweights.tasks.prompted import Problem, Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructed:
    """What such tasks share; a subclass has the problems and their verifier.

    Attributes:
        answer_length: the most tokens of an answer.
        instructions: that evolution starts from.
        longest: characters that instructions may have.
        template: what the model reads, with {instructions} and {question}.
    """

    answer_length: int = 512
    instructions: str = ""
    longest: int = 8000
    template: str = "{instructions}\n\nQuestion: {question}\nAnswer:"

    @property
    def seed_prompt(self) -> dict[str, str]:
        """See `PromptedTask`."""
        return {"instructions": self.instructions}

    def faults(self) -> list[str]:
        """What cannot work, in words."""
        found = []
        if self.answer_length < 1:
            found.append(f"answer_length is {self.answer_length}; it must be at least 1")
        for part in ("{instructions}", "{question}"):
            if part not in self.template:
                found.append(f"template has no {part}")
        return found + self.prompt_problems(self.seed_prompt)

    def text(self, prompt: Prompt, problem: Problem) -> str:
        """See `PromptedTask`."""
        # not str.format: instructions and questions may have braces of their own
        parts = {"{instructions}": prompt["instructions"], "{question}": problem.query}
        return re.sub(r"\{instructions\}|\{question\}", lambda m: parts[m[0]], self.template)

    def prompt_problems(self, prompt: Prompt) -> list[str]:
        """See `PromptedTask`."""
        if set(prompt) != {"instructions"}:
            return [f"the component is instructions, not {', '.join(prompt)}"]
        size = len(prompt["instructions"])
        said = f"instructions has {size} characters; {self.longest} is the most"
        return [said] if size > self.longest else []
