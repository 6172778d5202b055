"""Measure recall on a chat of your own: write it in the uniform format, ask what should be found.

    python examples/evaluate_own_data.py

Each question names the messages (turn_id) that hold its answer. The table that is printed says how
many of them stand whole inside a recall block of so many tokens.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHAT = [
    ("2026-03-01T09:00:00", ["My dog is called Biscuit.", "She is a whippet and two years old."]),
    ("2026-03-08T19:30:00", ["We moved to Lyon last week.", "The flat is in the Croix-Rousse."]),
    ("2026-04-02T08:15:00", ["I start at the bakery on Monday.", "They bake at four at night."]),
]
# question → (session, message), both counted from 1
QUESTIONS = {
    "What is the dog called?": [(1, 1)],
    "What breed is the dog?": [(1, 2)],
    "Where do we live now?": [(2, 1), (2, 2)],
    "Where do I work?": [(3, 1)],
}


def conversation() -> dict:
    return {
        "conversation_id": "mine",
        "user_id": "anna",
        "sessions": [
            {
                "session_id": f"s{number}",
                "datetime": day,
                "turns": [
                    {"turn_id": f"s{number}:{n}", "speaker": "Anna", "role": "user", "text": text}
                    for n, text in enumerate(texts, 1)
                ],
            }
            for number, (day, texts) in enumerate(CHAT, 1)
        ],
        "questions": [
            {
                "question_id": f"q{number}",
                "category": "single" if len(evidence) == 1 else "several",
                "question": question,
                "evidence": [f"s{session}:{message}" for session, message in evidence],
            }
            for number, (question, evidence) in enumerate(QUESTIONS.items(), 1)
        ],
    }


def main(folder: Path) -> None:
    file = folder / "mine.json"
    file.write_text(json.dumps([conversation()]), "utf-8")
    command = [sys.executable, "-m", "evals", "recall", "--data", str(file)]
    command += ["--budgets", "64,128", "--out", str(folder / "out")]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
