"""Exercise 11, an answer: ranges that hold what is measured on the shipped weights."""
GUESS = {
    "confident:0.9": (95, 100),
    "confident:0.5": (60, 80),
    "maskgit:10": (55, 75),
    "random_order:10": (75, 95),
    "naive prefix": (85, 100),
    "a wrong colour": (90, 100),
    "AR weights, diffusion decoding": (0, 10),
    "diffusion weights, AR decoding": (5, 25),
}


from exercises.checks.guess_first import *
