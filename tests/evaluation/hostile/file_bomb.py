# Fills the disk with one file and with many.


def answer(n):
    number = 0
    while number < 3000:
        try:
            with open(f"mtp_jax_hostile_{number}", "wb") as file:
                file.write(bytes(1 << 25 if number < 3 else 1))
        except OSError:
            if number > 10:
                return n
        number += 1
