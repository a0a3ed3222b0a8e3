"""Commands over trainers.

python -m keras_plasticity.experiments sweep trainer.py --grid=...
python -m keras_plasticity.experiments suite --size=minutes
"""

from keras_plasticity.experiments import command

if __name__ == "__main__":
    command.main()
