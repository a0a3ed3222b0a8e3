"""Commands over trainers.

python -m keras_plasticity.experiments sweep trainer.py --grid=...
"""

from keras_plasticity.experiments.sweeps import command

if __name__ == "__main__":
    command.main()
