# Takes all memory.
def answer(n):
    held = []
    while True:
        held.append(bytearray(1 << 26))
