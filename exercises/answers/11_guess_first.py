"""Exercise 11, an answer: ranges that hold what is measured on the shipped weights."""
GUESS = {
    "confident:0.7": (90, 100),
    "maskgit:2": (85, 100),
    "left_to_right:2": (30, 50),
    "random_order:4": (55, 75),
    "naive prefix": (90, 100),
    "a wrong colour": (90, 100),
    "AR weights, diffusion decoding": (0, 10),
    "diffusion weights, AR decoding": (0, 15),
}
