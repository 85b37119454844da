"""How quick it is, measured beside others in one run; extra `[bench]`."""
