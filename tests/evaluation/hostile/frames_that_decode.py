# Writes by hand what its encoder never would: values that are costly, nested, or ask back while they are read.
import json
import os
import struct

TREES = ("[" * 10**6, '["d",' + ",".join(f'[["i","{n * ((1 << 61) - 1):x}"],0]' for n in range(3000)) + "]",
         '["m","1E+999999999999"]', '["v",["h",0],["h",0]]', '["r",0,["i","' + "f" * 10**6 + '"],1]',
         '["l",NaN,Infinity,-0.0,1e999]', '["h",-1]', '["h",1e300]', '["n","Remote"]', '["k",1e308,1,1]')


class Asked:
    def as_integer_ratio(self):
        return self, 1

    __index__ = __int__ = __float__ = lambda self: 1


def answer(n):
    for text in TREES[n % 6::6]:
        data = b'["value",' + text.encode() + b"]"
        os.write(61, struct.pack("<Q", len(data)) + data)
    return json.dumps(TREES)[:n]
