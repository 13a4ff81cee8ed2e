"""Exercise 11, an answer: ranges that hold what is measured on the shipped weights."""
GUESS = {
    "confident:0.9": (95, 100),
    "confident:0.5": (15, 35),
    "maskgit:4": (0, 20),
    "random_order:4": (55, 75),
    "naive prefix": (90, 100),
    "a wrong colour": (90, 100),
    "AR weights, diffusion decoding": (0, 10),
    "diffusion weights, AR decoding": (0, 15),
}
