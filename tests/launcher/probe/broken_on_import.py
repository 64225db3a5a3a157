VALUE = 1
VALUE.missing
