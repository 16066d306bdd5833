# Crashes its interpreter.
import ctypes


def answer(n):
    ctypes.string_at(0)
