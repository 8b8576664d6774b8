"""What `pgjax envs` shows without importing any of it: every gymnax id with its observation shape and its actions, and
the other suites. A test compares the table with gymnax."""

SUITE_MODULES = {
    "playground": "mujoco_playground",
    "brax": "brax",
    "navix": "navix",
    "craftax": "craftax",
    "jumanji": "jumanji",
    "gymnasium": "gymnasium",
}
"""Suite -> what has to be installed for it, by the extra of that name."""

CATALOG: dict[str, tuple[tuple[int, ...], str]] = {
    "CartPole-v1": ((4,), "2 choices"),
    "Pendulum-v1": ((3,), "1 number"),
    "Acrobot-v1": ((6,), "3 choices"),
    "MountainCar-v0": ((2,), "3 choices"),
    "MountainCarContinuous-v0": ((2,), "1 number"),
    "Asterix-MinAtar": ((10, 10, 4), "5 choices"),
    "Breakout-MinAtar": ((10, 10, 4), "3 choices"),
    "Freeway-MinAtar": ((10, 10, 7), "3 choices"),
    "Seaquest-MinAtar": ((10, 10, 10), "6 choices"),
    "SpaceInvaders-MinAtar": ((10, 10, 6), "4 choices"),
    "Catch-bsuite": ((10, 5), "3 choices"),
    "DeepSea-bsuite": ((8, 8), "2 choices"),
    "MemoryChain-bsuite": ((3,), "2 choices"),
    "UmbrellaChain-bsuite": ((3,), "2 choices"),
    "DiscountingChain-bsuite": ((2,), "5 choices"),
    "MNISTBandit-bsuite": ((28, 28), "10 choices"),
    "SimpleBandit-bsuite": ((1, 1), "11 choices"),
    "FourRooms-misc": ((4,), "4 choices"),
    "MetaMaze-misc": ((15,), "4 choices"),
    "PointRobot-misc": ((6,), "2 numbers"),
    "BernoulliBandit-misc": ((4,), "2 choices"),
    "GaussianBandit-misc": ((4,), "2 choices"),
    "Reacher-misc": ((8,), "2 numbers"),
    "Swimmer-misc": ((16,), "2 numbers"),
    "Pong-misc": ((30, 40, 3), "3 choices"),
    "FrozenLake-misc": ((16,), "4 choices"),
}
