from .encoded import Encoded as Encoded
from .encoded import KeptImage as KeptImage
from .encoder import Encoder as Encoder
from .options import engine_arguments as engine_arguments
from .options import engine_options as engine_options
