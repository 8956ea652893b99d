from ._online_orthogonal.method import OnlineOrthogonalDictionary as OnlineOrthogonalDictionary
from ._prosper import BSC as BSC, DSC as DSC, GSC as GSC, MCA as MCA, MMCA as MMCA, TSC as TSC
from ._supervised import SupervisedDictionaryClassifier as SupervisedDictionaryClassifier
from ._topk_sae import topk_sae as topk_sae, train_sae as train_sae
