"""The literature, by BibTeX key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["REFERENCES", "bibtex"]


def _entry(kind: str, key: str, **fields: str) -> str:
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


_ENTRIES = (
    ("misc", "xu2024dynamics", {
        "author": "Xu, Yuelin and Zhang, Xiao",
        "title": "How Learning Dynamics Drive Adversarially Robust Generalization?",
        "year": "2024", "eprint": "2410.07719", "archiveprefix": "arXiv"}),
    ("inproceedings", "liu2021noise", {
        "author": "Liu, Kangqiao and Ziyin, Liu and Ueda, Masahito",
        "title": "Noise and Fluctuation of Finite Learning Rate Stochastic Gradient Descent",
        "booktitle": "International Conference on Machine Learning", "year": "2021", "eprint": "2012.03636",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "mulayoff2024exact", {
        "author": "Mulayoff, Rotem and Michaeli, Tomer",
        "title": "Exact Mean Square Linear Stability Analysis for {SGD}",
        "booktitle": "Conference on Learning Theory", "year": "2024", "eprint": "2306.07850",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "ziyin2022strength", {
        "author": "Ziyin, Liu and Liu, Kangqiao and Mori, Takashi and Ueda, Masahito",
        "title": "Strength of Minibatch Noise in {SGD}",
        "booktitle": "International Conference on Learning Representations", "year": "2022", "eprint": "2102.05375",
        "archiveprefix": "arXiv"}),
    ("article", "mandt2017", {
        "author": "Mandt, Stephan and Hoffman, Matthew D. and Blei, David M.",
        "title": "Stochastic Gradient Descent as Approximate {B}ayesian Inference",
        "journal": "Journal of Machine Learning Research", "volume": "18", "number": "134", "pages": "1--35",
        "year": "2017", "eprint": "1704.04289", "archiveprefix": "arXiv"}),
    ("article", "robbins1951", {
        "author": "Robbins, Herbert and Monro, Sutton", "title": "A Stochastic Approximation Method",
        "journal": "The Annals of Mathematical Statistics", "volume": "22", "number": "3", "pages": "400--407",
        "year": "1951"}),
    ("article", "polyak1964", {
        "author": "Polyak, Boris T.", "title": "Some methods of speeding up the convergence of iteration methods",
        "journal": "USSR Computational Mathematics and Mathematical Physics", "volume": "4", "number": "5",
        "pages": "1--17", "year": "1964"}),
    ("article", "polyak1992", {
        "author": "Polyak, Boris T. and Juditsky, Anatoli B.",
        "title": "Acceleration of Stochastic Approximation by Averaging",
        "journal": "SIAM Journal on Control and Optimization", "volume": "30", "number": "4", "pages": "838--855",
        "year": "1992"}),
    ("article", "nesterov1983", {
        "author": "Nesterov, Yurii",
        "title": "A method of solving a convex programming problem with convergence rate {$O(1/k^2)$}",
        "journal": "Soviet Mathematics Doklady", "volume": "27", "pages": "372--376", "year": "1983"}),
    ("inproceedings", "sutskever2013", {
        "author": "Sutskever, Ilya and Martens, James and Dahl, George and Hinton, Geoffrey",
        "title": "On the importance of initialization and momentum in deep learning",
        "booktitle": "International Conference on Machine Learning", "year": "2013"}),
    ("inproceedings", "pytorch", {
        "author": "Paszke, Adam and others",
        "title": "{PyTorch}: An Imperative Style, High-Performance Deep Learning Library",
        "booktitle": "Advances in Neural Information Processing Systems", "year": "2019"}),
    ("inproceedings", "ma2019qhm", {
        "author": "Ma, Jerry and Yarats, Denis", "title": "Quasi-hyperbolic momentum and {Adam} for deep learning",
        "booktitle": "International Conference on Learning Representations", "year": "2019", "eprint": "1810.06801",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "loshchilov2019", {
        "author": "Loshchilov, Ilya and Hutter, Frank", "title": "Decoupled Weight Decay Regularization",
        "booktitle": "International Conference on Learning Representations", "year": "2019", "eprint": "1711.05101",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "foret2021", {
        "author": "Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam",
        "title": "Sharpness-Aware Minimization for Efficiently Improving Generalization",
        "booktitle": "International Conference on Learning Representations", "year": "2021", "eprint": "2010.01412",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "wu2020awp", {
        "author": "Wu, Dongxian and Xia, Shu-Tao and Wang, Yisen",
        "title": "Adversarial Weight Perturbation Helps Robust Generalization",
        "booktitle": "Advances in Neural Information Processing Systems", "year": "2020", "eprint": "2004.05884",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "wang2022seat", {
        "author": "Wang, Hongjun and Wang, Yisen",
        "title": "Self-Ensemble Adversarial Training for Improved Robustness",
        "booktitle": "International Conference on Learning Representations", "year": "2022", "eprint": "2203.09678",
        "archiveprefix": "arXiv"}),
    ("article", "smith1968", {
        "author": "Smith, Russell A.", "title": "Matrix Equation {$XA + BX = C$}",
        "journal": "SIAM Journal on Applied Mathematics", "volume": "16", "number": "1", "pages": "198--201",
        "year": "1968"}),
    ("article", "kitagawa1977", {
        "author": "Kitagawa, Genshiro",
        "title": "An algorithm for solving the matrix equation {$X = FXF^T + S$}",
        "journal": "International Journal of Control", "volume": "25", "number": "5", "pages": "745--753",
        "year": "1977"}),
    ("article", "hall1992", {
        "author": "Hall, Peter", "title": "On the Removal of Skewness by Transformation",
        "journal": "Journal of the Royal Statistical Society: Series B", "volume": "54", "number": "1",
        "pages": "221--228", "year": "1992"}),
    ("article", "liu2020cauchy", {
        "author": "Liu, Yaowu and Xie, Jun",
        "title": "Cauchy Combination Test: A Powerful Test With Analytic p-Value Calculation Under Arbitrary "
                 "Dependency Structures",
        "journal": "Journal of the American Statistical Association", "volume": "115", "number": "529",
        "pages": "393--402", "year": "2020"}),
    ("inproceedings", "mulayoff2024exact", {
        "author": "Mulayoff, Rotem and Michaeli, Tomer",
        "title": "Exact Mean Square Linear Stability Analysis for {SGD}",
        "booktitle": "Conference on Learning Theory", "year": "2024", "eprint": "2306.07850",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "velikanov2023", {
        "author": "Velikanov, Maksim and Kuznedelev, Denis and Yarotsky, Dmitry",
        "title": "A view of mini-batch {SGD} via generating functions: conditions of convergence, phase transitions, "
                 "benefit from negative momenta",
        "booktitle": "International Conference on Learning Representations", "year": "2023", "eprint": "2206.11124",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "gurbuzbalaban2021", {
        "author": "Gurbuzbalaban, Mert and Simsekli, Umut and Zhu, Lingjiong",
        "title": "The Heavy-Tail Phenomenon in {SGD}",
        "booktitle": "International Conference on Machine Learning", "year": "2021", "eprint": "2006.04740",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "hodgkinson2021", {
        "author": "Hodgkinson, Liam and Mahoney, Michael W.",
        "title": "Multiplicative Noise and Heavy Tails in Stochastic Optimization",
        "booktitle": "International Conference on Machine Learning", "year": "2021", "eprint": "2006.06293",
        "archiveprefix": "arXiv"}),
    ("article", "kesten1973", {
        "author": "Kesten, Harry",
        "title": "Random difference equations and Renewal theory for products of random matrices",
        "journal": "Acta Mathematica", "volume": "131", "pages": "207--248", "year": "1973"}),
    ("book", "cochran1977", {
        "author": "Cochran, William G.", "title": "Sampling Techniques", "publisher": "Wiley", "year": "1977"}),
    ("article", "isserlis1918", {
        "author": "Isserlis, Leon",
        "title": "On a formula for the product-moment coefficient of any order of a normal frequency distribution in "
                 "any number of variables",
        "journal": "Biometrika", "volume": "12", "number": "1/2", "pages": "134--139", "year": "1918"}),
    ("misc", "goyal2017", {
        "author": "Goyal, Priya and others",
        "title": "Accurate, Large Minibatch {SGD}: Training {ImageNet} in 1 Hour",
        "year": "2017", "eprint": "1706.02677", "archiveprefix": "arXiv"}),
    ("misc", "kuehn2023", {
        "author": "K{\\\"u}hn, Marcel and Rosenow, Bernd",
        "title": "Correlated Noise in Epoch-Based Stochastic Gradient Descent: Implications for Weight Variances",
        "year": "2023", "eprint": "2306.05300", "archiveprefix": "arXiv"}),
    ("inproceedings", "welling2011", {
        "author": "Welling, Max and Teh, Yee Whye",
        "title": "{B}ayesian Learning via Stochastic Gradient {L}angevin Dynamics",
        "booktitle": "International Conference on Machine Learning", "year": "2011"}),
    ("article", "srivastava2014", {
        "author": "Srivastava, Nitish and Hinton, Geoffrey and Krizhevsky, Alex and Sutskever, Ilya and "
                  "Salakhutdinov, Ruslan",
        "title": "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
        "journal": "Journal of Machine Learning Research", "volume": "15", "pages": "1929--1958", "year": "2014"}),
    ("article", "bishop1995", {
        "author": "Bishop, Christopher M.", "title": "Training with Noise is Equivalent to {T}ikhonov Regularization",
        "journal": "Neural Computation", "volume": "7", "number": "1", "pages": "108--116", "year": "1995"}),
    ("inproceedings", "kingma2015", {
        "author": "Kingma, Diederik P. and Ba, Jimmy", "title": "{Adam}: A Method for Stochastic Optimization",
        "booktitle": "International Conference on Learning Representations", "year": "2015", "eprint": "1412.6980",
        "archiveprefix": "arXiv"}),
    ("misc", "tieleman2012rmsprop", {
        "author": "Tieleman, Tijmen and Hinton, Geoffrey",
        "title": "Lecture 6.5: {RMSProp}, divide the gradient by a running average of its recent magnitude",
        "howpublished": "COURSERA: Neural Networks for Machine Learning", "year": "2012"}),
    ("article", "hill1975", {
        "author": "Hill, Bruce M.",
        "title": "A Simple General Approach to Inference About the Tail of a Distribution",
        "journal": "The Annals of Statistics", "volume": "3", "number": "5", "pages": "1163--1174", "year": "1975"}),
    ("article", "goldie1991", {
        "author": "Goldie, Charles M.",
        "title": "Implicit Renewal Theory and Tails of Solutions of Random Equations",
        "journal": "The Annals of Applied Probability", "volume": "1", "number": "1", "pages": "126--166",
        "year": "1991"}),
    ("article", "vanneste2010", {
        "author": "Vanneste, Jacques",
        "title": "Estimating generalized {L}yapunov exponents for products of random matrices",
        "journal": "Physical Review E", "volume": "81", "pages": "036701", "year": "2010"}),
    ("book", "jury1964", {
        "author": "Jury, Eliahu I.", "title": "Theory and Application of the z-Transform Method", "publisher": "Wiley",
        "year": "1964"}),
    ("article", "hoelder1889", {
        "author": "H{\\\"o}lder, Otto", "title": "{\\\"U}ber einen Mittelwerthssatz",
        "journal": "Nachrichten von der K{\\\"o}niglichen Gesellschaft der Wissenschaften und der "
                   "Georg-Augusts-Universit{\\\"a}t zu G{\\\"o}ttingen", "pages": "38--47", "year": "1889"}),
    ("inproceedings", "goodfellow2015", {
        "author": "Goodfellow, Ian J. and Shlens, Jonathon and Szegedy, Christian",
        "title": "Explaining and Harnessing Adversarial Examples",
        "booktitle": "International Conference on Learning Representations", "year": "2015", "eprint": "1412.6572",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "madry2018", {
        "author": "Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris and Vladu, "
                  "Adrian",
        "title": "Towards Deep Learning Models Resistant to Adversarial Attacks",
        "booktitle": "International Conference on Learning Representations", "year": "2018", "eprint": "1706.06083",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "jacot2018", {
        "author": "Jacot, Arthur and Gabriel, Franck and Hongler, Cl{\\'e}ment",
        "title": "Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
        "booktitle": "Advances in Neural Information Processing Systems", "year": "2018", "eprint": "1806.07572",
        "archiveprefix": "arXiv"}),
    ("article", "xu2009robustness", {
        "author": "Xu, Huan and Caramanis, Constantine and Mannor, Shie",
        "title": "Robustness and Regularization of Support Vector Machines",
        "journal": "Journal of Machine Learning Research", "volume": "10", "pages": "1485--1510", "year": "2009"}),
    ("inproceedings", "javanmard2020", {
        "author": "Javanmard, Adel and Soltanolkotabi, Mahdi and Hassani, Hamed",
        "title": "Precise Tradeoffs in Adversarial Training for Linear Regression",
        "booktitle": "Conference on Learning Theory", "year": "2020", "eprint": "2002.10477",
        "archiveprefix": "arXiv"}),
    ("inproceedings", "xing2021", {
        "author": "Xing, Yue and Zhang, Ruizhi and Cheng, Guang",
        "title": "Adversarially Robust Estimate and Risk Analysis in Linear Regression",
        "booktitle": "International Conference on Artificial Intelligence and Statistics", "year": "2021",
        "eprint": "2012.10278", "archiveprefix": "arXiv"}),
    ("inproceedings", "vanrooyen2015", {
        "author": "van Rooyen, Brendan and Menon, Aditya Krishna and Williamson, Robert C.",
        "title": "Learning with Symmetric Label Noise: The Importance of Being Unhinged",
        "booktitle": "Advances in Neural Information Processing Systems", "year": "2015", "eprint": "1505.07634",
        "archiveprefix": "arXiv"}),
    ("misc", "zhou2023unhinged", {
        "author": "Zhou, Xiong and Liu, Xianming and Wang, Hanzhang and Zhai, Deming and Jiang, Junjun and "
                  "Ji, Xiangyang",
        "title": "On the Dynamics Under the Unhinged Loss and Beyond", "year": "2023", "eprint": "2312.07841",
        "archiveprefix": "arXiv"}),
    ("article", "hassani2024", {
        "author": "Hassani, Hamed and Javanmard, Adel",
        "title": "The curse of overparametrization in adversarial training: Precise analysis of robust generalization "
                 "for random features regression",
        "journal": "The Annals of Statistics", "volume": "52", "number": "2", "pages": "441--465", "year": "2024",
        "doi": "10.1214/24-AOS2353", "eprint": "2201.05149", "archiveprefix": "arXiv"}),
    ("techreport", "bussgang1952", {
        "author": "Bussgang, Julian J.",
        "title": "Crosscorrelation functions of amplitude-distorted {G}aussian signals",
        "institution": "Research Laboratory of Electronics, Massachusetts Institute of Technology", "year": "1952"}),
)  # fmt: skip

#: Every reference of the catalogue as a BibTeX entry, by key.
REFERENCES: Mapping[str, str] = {key: _entry(kind, key, **fields) for kind, key, fields in _ENTRIES}


def bibtex(keys: Iterable[str]) -> str:
    """Return the BibTeX entries of some keys, in order; a key of the reader's own is passed over as a comment.

    Parameters
    ----------
    keys : iterable of str

    Returns
    -------
    str

    Examples
    --------
    >>> print(bibtex(["jury1964"]))
    @book{jury1964,
      author = {Jury, Eliahu I.},
      title = {Theory and Application of the z-Transform Method},
      publisher = {Wiley},
      year = {1964}
    }
    """
    return "\n\n".join(REFERENCES.get(key, f"% no entry for {key}") for key in keys)
