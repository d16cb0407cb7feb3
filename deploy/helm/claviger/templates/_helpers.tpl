{{/* Names and labels. */}}
{{- define "claviger.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "claviger.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "claviger.labels" -}}
{{ include "claviger.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "claviger.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What would install and then not start is an error of the template, with the value to set. */}}
{{- define "claviger.check" -}}
{{- if and (not .Values.config) (not .Values.existingConfigMap) }}
{{- fail "set config to the text of a claviger.toml (--set-file config=claviger.toml), or existingConfigMap to the name of a ConfigMap that holds it" }}
{{- end }}
{{- if and .Values.config .Values.existingConfigMap }}
{{- fail "config and existingConfigMap exclude each other" }}
{{- end }}
{{- $certificates := 0 }}
{{- if .Values.tls.secretName }}{{ $certificates = add1 $certificates }}{{ end }}
{{- if .Values.tls.certManager.enabled }}{{ $certificates = add1 $certificates }}{{ end }}
{{- if .Values.tls.csi.driver }}{{ $certificates = add1 $certificates }}{{ end }}
{{- if ne (int $certificates) 1 }}
{{- fail (printf "the server needs one certificate: set exactly one of tls.secretName, tls.certManager.enabled and tls.csi.driver (%d are set)" (int $certificates)) }}
{{- end }}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) }}
{{- fail "tls.certManager.issuerRef.name: which issuer of cert-manager signs the server's certificate" }}
{{- end }}
{{- if and .Values.clientCa.configMapName .Values.clientCa.secretName }}
{{- fail "clientCa.configMapName and clientCa.secretName exclude each other" }}
{{- end }}
{{- if and (ne .Values.module.source "none") (or (not .Values.module.image) (not .Values.module.path)) }}
{{- fail "module.image and module.path: where the vendor's library is" }}
{{- end }}
{{- if and (eq .Values.module.source "imageVolume") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "module.source = imageVolume needs Kubernetes 1.33 or later; this is %s: use initContainer" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
