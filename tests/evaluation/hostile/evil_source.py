# Is a source whose reading takes long or much.
x = (1)
code = "x = " + "(" * 150 + ")" * 150
for text in ("-" * 10**6 + "1", "[" * 10**6, "9**" * 20 + "9", "f'" + "{x:" * 10**4, "1" * 10**6, "a." * 10**5 + "b"):
    try:
        exec(compile(text, "<program>", "exec"))
    except (SyntaxError, MemoryError, RecursionError, ValueError, NameError):
        pass


def answer(n):
    return n
