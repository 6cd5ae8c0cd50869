"""The conversation at the terminal: reads lines, remembers turns, cuts the oldest when the context is full."""


def fit(turns, size, room):
    """Drop the oldest whole turns (a question and its answer) until size(turns) <= room -> (turns, how many dropped).

    The last message always stays, even when it does not fit alone.
    """
    dropped = 0
    while size(turns) > room and len(turns) > 1:
        turns, dropped = turns[2:], dropped + 1
    return turns, dropped


def talk(reply, size, room):
    """Talk until Ctrl-D or Ctrl-C.

    reply(turns) yields the pieces of an answer; size(turns) is the tokens of a conversation, of which `room`
    fit beside an answer. turns: [{"role", "content"}, ...].
    """
    turns = []
    try:
        while True:
            line = input("> ").strip()
            if line == "/reset":
                turns = []
                print("(I have forgotten what we said.)")
            elif line.startswith("/"):
                print("(/reset starts again; Ctrl-D leaves)")
            elif line:
                turns, dropped = fit(turns + [{"role": "user", "content": line}], size, room)
                if dropped:
                    print(f"(the context is full: I forget our oldest {'turn' if dropped == 1 else f'{dropped} turns'})")
                if size(turns) > room:
                    print(f"(that is {size(turns)} tokens, and I can read {room}: please say it in fewer words)")
                    turns = []
                    continue
                answer = ""
                for piece in reply(turns):
                    print(piece, end="", flush=True)
                    answer += piece
                print()
                turns.append({"role": "assistant", "content": answer})
    except (EOFError, KeyboardInterrupt):
        print("\nGoodbye.")
